"""The loss as a sum and a count; a step that is not finite."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.errors import TrainingError
from vila_mc.flow import IGNORE_LABEL
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.train import step as step_module
from vila_mc.train.step import Trainer, loss_sum_and_count

INF = math.inf


def test_sum_and_count_are_of_trained_positions() -> None:
    labels = torch.tensor([[1, IGNORE_LABEL, 3], [IGNORE_LABEL, 0, IGNORE_LABEL]])
    loss_bs = torch.tensor([[1.0, 10.0, 2.0], [20.0, 4.0, 30.0]], requires_grad=True)
    loss_sum, count, report = loss_sum_and_count(labels, loss_bs)
    assert (loss_sum.item(), count.item(), report["loss_sum"].item()) == (7.0, 3, 7.0)
    loss_sum.backward()
    assert loss_bs.grad.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert not report["loss_sum"].requires_grad


def test_nothing_trained_is_zero_of_zero() -> None:
    labels = torch.full((1, 4), IGNORE_LABEL)
    loss_sum, count, _ = loss_sum_and_count(labels, torch.rand(1, 4))
    assert (loss_sum.item(), count.item()) == (0.0, 0)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with distributed(tiny_run().parallel, seed=1) as ranks:
        yield ranks


def test_a_step_reports_the_global_batch(ranks: Ranks) -> None:
    config = tiny_run()
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    batches = tiny_microbatches(config, 0, 1)
    first = trainer.step(batches)
    trained = sum(int((batch.labels != IGNORE_LABEL).sum()) for batch in batches)
    assert (first.trained_tokens, first.num_images, first.should_stop) == (trained, 4, False)
    second = trainer.step(batches, should_stop=True)
    assert second.should_stop
    assert second.loss < first.loss


def test_the_loss_of_each_entry_of_the_blend(ranks: Ranks) -> None:
    """Every other sample of the second of three entries; what none trains has no loss."""
    config = tiny_run(data={"blend": [{"path": name} for name in "abc"]})
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    length, batches = config.data.sequence_length, tiny_microbatches(config, 0, 1)
    owned = [
        replace(batch, sample_lengths=((length,),), entries=((index % 2,),))
        for index, batch in enumerate(batches)
    ]
    result = trainer.step(owned)
    assert result.loss_by_entry[2] is None
    counts = [
        sum(int((b.labels != IGNORE_LABEL).sum()) for b in batches[entry::2]) for entry in (0, 1)
    ]
    mean = sum(n * loss for n, loss in zip(counts, result.loss_by_entry, strict=False))
    assert mean / sum(counts) == pytest.approx(result.loss, rel=1e-6)
    assert result.loss_by_entry[0] != pytest.approx(result.loss_by_entry[1], rel=1e-4)


def test_a_step_that_trains_nothing_ends_the_run(ranks: Ranks) -> None:
    config = tiny_run()
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    batches = tiny_microbatches(config, 0, 1)
    for batch in batches:
        batch.labels.fill_(IGNORE_LABEL)
    length = config.data.sequence_length
    with pytest.raises(TrainingError, match=f"no token .* data.sequence_length {length}"):
        trainer.step(batches)


def _weights(stages: list[VilaModel]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for stage in stages for p in stage.parameters()])


@pytest.mark.parametrize("loss", ["finite", "nan", "inf and -inf"])
def test_a_step_that_is_not_finite_changes_nothing(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Weights, moments and their step are as if it had not been; the schedule goes on."""
    config = tiny_run()
    trainers = [Trainer(config, ranks, build_stages(config, ranks)) for _ in range(2)]
    batches = tiny_microbatches(config, 0, 1)
    for trainer in trainers:
        assert not trainer.step(batches).skipped
    before = _weights(trainers[0].stages).clone()
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "loss_sum_and_count", _poisoned(loss))
        result = trainers[0].step(batches)
    assert result.skipped
    assert result.learning_rate > 0
    assert result.bad_microbatches == (() if loss == "finite" else (1, 2))
    assert torch.isfinite(torch.tensor(result.loss)) == (loss == "finite")
    assert torch.equal(_weights(trainers[0].stages), before)
    trainers[1].scheduler.step(1)  # its rate goes on too
    after = [trainer.step(batches) for trainer in trainers]
    assert after[0] == after[1]
    assert torch.equal(_weights(trainers[0].stages), _weights(trainers[1].stages))


def _poisoned(loss: str) -> Callable[..., Any]:
    """A loss whose gradient is NaN, and which itself may not be finite in microbatches 1 and 2."""
    calls = itertools.count()
    factors = {"finite": (1.0, 1.0), "nan": (math.nan, math.nan), "inf and -inf": (INF, -INF)}

    def compute(
        labels: torch.Tensor, loss_bs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        loss_sum, count, report = loss_sum_and_count(labels, _NanGradient.apply(loss_bs))
        call = next(calls)
        factor = factors[loss][call - 1] if call in (1, 2) else 1.0
        return loss_sum * factor, count, {"loss_sum": report["loss_sum"] * factor}

    return compute


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * math.nan


def test_the_loss_scale_answers_for_gradients_alone(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts as a bad step does not lower it, what lowers it counts as none."""
    config = tiny_run(train={"precision": "fp16"})
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    batches = tiny_microbatches(config, 0, 1)
    trainer.step(batches)
    scales = [float(trainer.optimizer.get_loss_scale())]
    for loss in ("nan", "inf and -inf", "finite"):
        with monkeypatch.context() as patch:
            patch.setattr(step_module, "loss_sum_and_count", _poisoned(loss))
            result = trainer.step(batches)
        assert (result.skipped, result.overflowed) == (True, loss == "finite")
        scales.append(float(trainer.optimizer.get_loss_scale()))
    assert scales == [scales[0]] * 3 + [scales[0] / 2]


def test_weights_that_are_not_finite_are_seen(ranks: Ranks) -> None:
    config = tiny_run(train={"trainable": ["connector"]})
    stages = build_stages(config, ranks)
    trainer = Trainer(config, ranks, stages)
    assert trainer.weights_are_finite()
    with torch.no_grad():
        stages[0].connector.fc1.weight[0, 0] = INF
    assert not trainer.weights_are_finite()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_sees_only_images_stays_in_a_step_without_them(ranks: Ranks, precision: str) -> None:
    config = tiny_run(optimizer={"weight_decay": 0.5}, train={"precision": precision})
    stages = build_stages(config, ranks)
    trainer = Trainer(config, ranks, stages)
    batches = tiny_microbatches(config, 0, 1)
    trainer.step(batches)
    before = {name: weight.detach().clone() for name, weight in stages[0].named_parameters()}
    result = trainer.step([batches[2]] * 8)
    assert (result.num_images, result.skipped) == (0, False)
    changed = {n for n, w in stages[0].named_parameters() if not torch.equal(w, before[n])}
    assert changed
    assert all(name.startswith("language.") for name in changed), changed
    assert trainer.step(batches).num_images > 0
    assert not torch.equal(stages[0].connector.fc1.weight, before["connector.fc1.weight"])


def test_the_two_halves_of_a_step_are_megatrons_own(ranks: Ranks) -> None:
    config = tiny_run(optimizer={"clip_grad": 0.1})
    ours, theirs = (Trainer(config, ranks, build_stages(config, ranks)) for _ in range(2))
    theirs._update = lambda *_, **__: theirs.optimizer.step()
    batches = tiny_microbatches(config, 0, 1)
    for _ in range(3):
        result = ours.step(batches)
        assert result.grad_norm > 0.1
        assert theirs.step(batches) == result
    assert torch.equal(_weights(ours.stages), _weights(theirs.stages))
