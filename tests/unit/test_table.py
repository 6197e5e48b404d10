"""Rows as columns: what stands to the right and what to the left."""

from vila_mc.table import aligned


def test_figures_stand_to_the_right_below_their_heading() -> None:
    rows = [("layout", "step", "GiB"), ("tp2", "9.50 s", "7.1"), ("tp16 rc", "12.25 s", "")]
    assert aligned(rows) == [
        "layout      step  GiB",
        "tp2       9.50 s  7.1",
        "tp16 rc  12.25 s",
    ]


def test_words_stand_to_the_left() -> None:
    assert aligned([("1 MiB", "a"), ("12 MiB", "bb")]) == [" 1 MiB  a", "12 MiB  bb"]
    assert aligned([("a", "1")]) == ["a  1"]
    assert aligned([]) == []
