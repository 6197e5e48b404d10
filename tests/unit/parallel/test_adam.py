"""Our AdamW is torch's AdamW; only where ``step`` is kept differs."""

import copy
from typing import Any

import pytest
import torch
from megatron.core import optimizer as megatron_optimizer

from vila_mc.parallel import adam
from vila_mc.parallel.adam import GroupStepAdamW, group_step_adamw, optimizer_line


def _parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (7,), (2, 2, 2))]


def _groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": parameters[:1], "lr": 3e-2, "weight_decay": 0.1},
        {"params": parameters[1:], "lr": 1e-2, "weight_decay": 0.0},
    ]


def _set_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step - 3)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95), (0.5, 0.0)])
def test_equals_torch_over_several_steps(betas: tuple[float, float]) -> None:
    ours, theirs = _parameters(), _parameters()
    mine = GroupStepAdamW(_groups(ours), betas=betas, eps=1e-6)
    reference = torch.optim.AdamW(_groups(theirs), betas=betas, eps=1e-6)
    for step in range(8):
        for parameters, optimizer in ((ours, mine), (theirs, reference)):
            _set_gradients(parameters, step)
            optimizer.param_groups[0]["lr"] = 3e-2 / (1 + step)  # a schedule
            optimizer.step()
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-7)
    assert [group["step"] for group in mine.param_groups] == [8, 8]


def test_a_parameter_without_gradient_stays() -> None:
    parameters = _parameters()
    before = parameters[1].detach().clone()
    optimizer = GroupStepAdamW(parameters, weight_decay=0.5)
    _set_gradients(parameters, 0)
    parameters[1].grad = None
    optimizer.step()
    assert torch.equal(parameters[1], before)
    assert parameters[1] not in optimizer.state


def test_goes_on_bit_for_bit_from_its_state() -> None:
    unbroken, resumed = _parameters(), _parameters()
    optimizer = GroupStepAdamW(unbroken, lr=0.1)
    for step in range(3):
        _set_gradients(unbroken, step)
        optimizer.step()
    with torch.no_grad():
        for ours, theirs in zip(resumed, unbroken, strict=True):
            ours.copy_(theirs)
    again = GroupStepAdamW(resumed, lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameters, one in ((unbroken, optimizer), (resumed, again)):
        _set_gradients(parameters, 3)
        one.step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(resumed, unbroken, strict=True))


def test_megatron_has_its_own_back_afterwards() -> None:
    if not megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        pytest.skip("there is a FusedAdam")
    before = megatron_optimizer.Adam
    with group_step_adamw(), group_step_adamw():
        assert megatron_optimizer.Adam is GroupStepAdamW
    assert megatron_optimizer.Adam is before
    assert megatron_optimizer.USING_PYTORCH_OPTIMIZER


@pytest.mark.parametrize(
    ("has_te", "has_apex", "said"),
    [
        (False, False, "optimizer AdamW of vila_mc"),
        (False, True, "optimizer FusedAdam of NVIDIA Apex"),
        (True, True, "optimizer FusedAdam of Transformer Engine"),
    ],
)
def test_ours_stands_in_only_where_no_fused_one_works(
    has_te: bool, has_apex: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Apex without its kernels is none, though Megatron-Core would import its FusedAdam."""
    monkeypatch.setattr(adam, "has_transformer_engine", lambda: has_te)
    monkeypatch.setattr(adam, "has_apex_optimizer", lambda: has_apex)
    monkeypatch.setattr(megatron_optimizer, "USING_PYTORCH_OPTIMIZER", False)
    monkeypatch.setattr(megatron_optimizer, "Adam", None)
    assert optimizer_line() == said
    with group_step_adamw():
        is_ours = megatron_optimizer.Adam is GroupStepAdamW
    assert is_ours == ("vila_mc" in said)
