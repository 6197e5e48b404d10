"""FLOPs that are counted are those of the formula."""

from pathlib import Path

from tests.rehearsal.small import rehearsed, small_run

S, H, F, KV, V = 32, 64, 96, 32, 256  # positions; widths of the language model; padded vocabulary
N, P, Q, E, G, C = 8, 17, 4, 32, 64, 147  # images and their tokens; widths of the tower; a patch
LAYER = 2 * H * H + 2 * H * KV + 3 * H * F  # weights of matrices
TOWER_LAYER = 4 * E * E + 2 * E * G
CONNECTOR = 4 * E * H + H * H


def test_a_whole_step_of_one_rank(guard: Path) -> None:
    """One language layer, and one of the tower's two: the output of the second is unread."""
    run = small_run(model={"language": {"layers": 1}})
    assert run.model.language.padded_vocab() == V
    record = rehearsed(guard, run, microbatches=2)
    attention = 4 * S * S * H  # all scores are counted, also those that a mask hides
    text = 2 * S * (LAYER + H * V)
    tower = 2 * P * TOWER_LAYER + 4 * P * P * E
    images = 2 * N * (C * E * (P - 1)) + N * tower + 2 * N * Q * CONNECTOR
    assert record.flops["forward"] == 2 * (text + attention + images)
    # Weights and inputs of what learns; attention computes its scores once more. The projector's
    # hidden tokens are kept in part, and the norm's gradient comes from the same product.
    connector = 2 * N * Q * (4 * E * H + 2 * H * H)
    language = 2 * text + 2.5 * attention
    extra = record.flops["backward"] / 2 - language - connector
    assert 0 <= extra <= 2 * N * Q * CONNECTOR
    assert extra < 0.05 * record.flops["backward"]


def test_ranks_share_what_is_split(guard: Path) -> None:
    one = rehearsed(guard, small_run())
    two = rehearsed(guard, small_run(parallel={"tensor": 2}), world_size=2)
    whole = 2 * N * Q * CONNECTOR + 2 * N * C * E * (P - 1)  # connector and patches: on each
    assert 2 * (two.flops["forward"] - whole) == one.flops["forward"] - whole
