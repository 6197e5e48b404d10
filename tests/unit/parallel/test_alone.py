"""Short ways for groups of one: the same numbers, and nothing sent."""

from typing import Any, cast

import torch
from megatron.core.tensor_parallel import layers
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.profiler import ProfilerActivity, profile

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.model.build import build_stages
from vila_mc.parallel.alone import _in_place, _Linear, _unless_alone
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer


class Group:
    """What is asked of a process group."""

    def __init__(self, members: int) -> None:
        self.members = members

    def size(self) -> int:
        return self.members


def group(members: int) -> ProcessGroup:
    return cast(ProcessGroup, Group(members))


def test_a_linear_layer_and_its_gradients() -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 2, 8), torch.randn(6, 8), torch.randn(6)
    original = layers.linear_with_grad_accumulation_and_async_allreduce
    seen = []
    for linear in (_Linear(original), original):
        inputs = [value.clone().requires_grad_() for value in values]
        states, weight, bias = inputs
        options: dict[str, Any] = dict(tp_group=group(1), gtp_remat_size=1)
        output = linear(states, weight, bias, False, False, False, None, **options)
        output.square().sum().backward()
        seen.append([output.detach(), *(cast(Tensor, value.grad) for value in inputs)])
    for got, wanted in zip(*seen, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_what_must_be_sent_or_added_goes_the_long_way() -> None:
    calls: list[Any] = []

    def original(*args: Any, **options: Any) -> Tensor:
        calls.append((args[3:7], options["gtp_remat_size"]))
        return torch.empty(0)

    linear, weight = _Linear(original), torch.ones(2, 2)
    ways: list[tuple[tuple[bool, bool, bool, list[Tensor] | None], int]] = [
        ((True, False, False, None), 1),
        ((False, True, False, None), 1),
        ((False, False, True, None), 1),
        ((False, False, False, []), 1),
        ((False, False, False, None), 2),
    ]
    for flags, remat in ways:
        linear(weight, weight, None, *flags, tp_group=group(2), gtp_remat_size=remat)
    assert calls == ways


def test_collectives_of_several_members_or_other_memory_are_made() -> None:
    calls: list[int] = []
    collective = _in_place(lambda output, input, *, group, **_: calls.append(group.size()))
    memory = torch.zeros(4)
    collective(memory, memory[:], group=group(1))
    assert calls == []
    collective(memory, torch.zeros(4), group=group(1))
    collective(memory, memory[:2], group=group(2))
    assert calls == [1, 2]
    pass_on = _unless_alone(lambda tensor, group: tensor + group.size())
    assert pass_on(memory, group(1)) is memory
    assert torch.equal(pass_on(memory, group(2)), memory + 2)


def test_a_step_of_one_rank_copies_no_weights_onto_themselves() -> None:
    config = tiny_run()
    with distributed(config.parallel, seed=1) as ranks:
        trainer = Trainer(config, ranks, build_stages(config, ranks))
        batches = tiny_microbatches(config, 0, 1)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            trainer.step(batches)
    names = {event.key for event in seen.key_averages()}
    assert not any("gather" in name or "scatter_" in name for name in names if "c10d" in name)
    assert not any("ParallelRegion" in name or "GradAccumulation" in name for name in names)
    assert "_Turn" in names
