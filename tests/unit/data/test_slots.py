"""Memory that is used again, but never while something looks at it."""

import pytest
import torch

from vila_mc.data.batches.slots import Placing, Slots
from vila_mc.errors import SetupError


def test_a_lent_slot_is_free_when_the_last_view_has_gone() -> None:
    slots = Slots(1, 100, lendable=1)
    slot = slots.take()
    assert not slots.has_free()
    tensor = torch.from_numpy(slots.lend(slot, 24).view("<i8"))
    view = tensor[1:]
    del tensor
    assert not slots.has_free()
    del view
    assert slots.has_free()


def test_beyond_the_lendable_slots_there_are_copies() -> None:
    slots = Slots(3, 8, lendable=2)
    lent = []
    for number in range(5):
        slot = slots.take()
        slots.view(slot)[:8] = number
        lent.append(slots.lend(slot, 8))
        assert slots.has_free()
    assert [int(memory[7]) for memory in lent] == [0, 1, 2, 3, 4]
    del lent[0]
    slot = slots.take()
    in_place = slots.lend(slot, 8)
    assert in_place.ctypes.data == slots.view(slot).ctypes.data


def test_lent_memory_outlives_the_slots() -> None:
    slots = Slots(1, 8, lendable=1)
    slot = slots.take()
    slots.view(slot)[:] = 7
    memory = slots.lend(slot, 8)
    del slots
    assert memory.tolist() == [7] * 8


def test_arrays_stand_after_each_other_and_not_beyond_the_end() -> None:
    slots = Slots(2, 4096, lendable=1)
    memory = slots.view(0)
    placing = Placing(memory)
    first, second = placing.empty((3, 5), "u1"), placing.empty((2, 1), "i8")  # type: ignore[arg-type]
    first[:], second[:] = 1, -1
    assert placing.used == 128
    assert memory[:15].tolist() == [1] * 15
    assert memory[64:80].tolist() == [255] * 16
    with pytest.raises(ValueError, match="reshape"):
        placing.empty((4096,), "u1")  # type: ignore[arg-type]


def test_too_much_memory() -> None:
    with pytest.raises(SetupError, match=r"no room to read ahead: .* Lower train\.micro_batch"):
        Slots(1024, 1 << 50, lendable=1)
