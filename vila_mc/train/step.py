"""One optimizer step of any layout: gradients, update, and figures that all ranks share."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from vila_mc.checkpoint.load import load_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.config.run import RunConfig
from vila_mc.errors import TrainingError
from vila_mc.flow import IGNORE_LABEL, Microbatch, StepResult, sent
from vila_mc.model.primary_weights import is_primary, masters
from vila_mc.model.vila_model import VilaModel
from vila_mc.observe.spans import Spans
from vila_mc.parallel.frozen_layers import NoGradientFromAbove
from vila_mc.parallel.groups import Ranks
from vila_mc.topology.flops import pairs_of
from vila_mc.train.copies import Copies
from vila_mc.train.loss_scale import LossScale
from vila_mc.train.optimizer import build_optimizer
from vila_mc.train.watch import watch


class Trainer:
    """Stages wrapped for data parallelism, with their optimizer and schedule.

    Args:
        config: the whole configuration.
        ranks: this rank and its groups.
        stages: this rank's stages, frozen already.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, stages: Sequence[VilaModel]) -> None:
        self.config = config
        self.ranks = ranks
        self.stages = list(stages)
        self.wrapped = [_wrap(config, stage, index) for index, stage in enumerate(stages)]
        if config.parallel.overlap_grad_reduce:
            no_sync = [stage.no_sync for stage in self.wrapped]
            for stage in self.stages:
                stage.config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        self.optimizer, self.scheduler = build_optimizer(config, self.wrapped)
        if config.train.precision == "fp16":
            for stage in self.stages:
                stage.config.grad_scale_func = self.optimizer.scale_loss
        self._vision_shards = list(_shards_of_vision(self.stages, self.optimizer))
        self._messages = _messages(ranks, self.stages)
        self.spans = Spans(ranks.device)
        """Takes the time of what is done in steps, between its ``begin`` and ``end``."""
        watch(self.stages, self.optimizer, self.spans)
        self.copies = Copies(config, self.stages, ranks)
        """Compares weights that several ranks hold."""

    def step(self, microbatches: Sequence[Microbatch], *, should_stop: bool = False) -> StepResult:
        """Learn from one global batch.

        Args:
            microbatches: this data-parallel rank's share, the same number on every rank.
            should_stop: whether this rank was asked to stop; every rank learns of it.

        A step whose loss or gradient is not finite on any rank changes nothing on all of them; the
        schedule goes on.

        Raises:
            TrainingError: no token is trained, or copies of weights differ.
        """
        losses, by_entry = self._forward_backward(microbatches)
        step = self.scheduler.num_steps + 1
        self.copies.require_equal_in(step)  # soon the update would hide it
        bad = tuple(index for index, loss in enumerate(losses) if not math.isfinite(loss))
        scale = LossScale(self.optimizer)
        with self.spans.span("norm"):
            grad_norm = self._gradient_norm()
            total, by_entries = self._sum_over_ranks(
                math.nan if bad else math.fsum(losses),
                by_entry,
                grad_norm,
                microbatches,
                should_stop,
            )
        loss = total.loss_sum / max(total.trained_tokens, 1.0)
        overflowed = scale.settle(loss)
        if total.trained_tokens == 0:
            raise TrainingError(
                "no token of this step is trained, so there is nothing to learn. Samples lose what "
                f"lies beyond data.sequence_length {self.config.data.sequence_length}: raise it, "
                "or see with tools/inspect_data.py show what a sample trains."
            )
        self.scheduler.step(1)
        skipped = total.bad_gradients > 0 or not math.isfinite(loss)
        if not skipped:
            with self.spans.span("optimizer"):
                self._update(grad_norm, has_images=total.images > 0)
        return StepResult(
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=self.scheduler.get_lr({}),
            trained_tokens=int(total.trained_tokens),
            num_images=int(total.images),
            num_samples=int(total.samples),
            positions=int(total.positions),
            pairs=int(total.pairs),
            filled=total.positions
            / (self.config.train.global_batch * self.config.data.sequence_length),
            substitutes=int(total.substitutes),
            should_stop=total.stop_requests > 0,
            skipped=skipped,
            overflowed=overflowed,
            bad_microbatches=bad,
            loss_by_entry=by_entries,
        )

    def resume(self, path: Path) -> Manifest:
        """Go on from a checkpoint of any layout; the schedule stands where its steps end.

        The learning rate of a step depends on the run's own settings and the step alone, so what
        has been changed in them applies.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another model.
        """
        manifest = load_checkpoint(path, self.ranks, self.stages, self.optimizer)
        self.scheduler.step(manifest.step)
        return manifest

    def weights_are_finite(self) -> bool:
        """Whether every weight is; every rank must call this together."""
        finite = [
            values.isfinite().all()
            for stage in self.stages
            # A cast to FP8 may make the greatest number of what is not finite.
            for values in (*stage.parameters(), *masters(stage))
        ]
        bad = torch.stack(finite).logical_not().sum()
        dist.all_reduce(bad)
        return int(bad) == 0

    def _gradient_norm(self) -> float:
        """Over all ranks, before clipping.

        With ``_update`` it is Megatron-Core's own step, which would change weights by any norm.
        """
        self.optimizer.prepare_grads()
        return float(self.optimizer.get_grad_norm())

    def _update(self, grad_norm: float, *, has_images: bool) -> None:
        """Clip and step. What sees only images has no gradient in a batch without any: it stays as
        it is, as torch's AdamW leaves a parameter without gradient, and is not decayed either."""
        if not has_images:
            for shard in self._vision_shards:
                shard.grad = None
        clip = self.config.optimizer.clip_grad
        for part in self.optimizer.chained_optimizers:
            if clip and not part.is_stub_optimizer:
                clip_grad_by_total_norm_fp32(part.get_parameters(), clip, grad_norm)
        self.optimizer.step_with_ready_grads()

    def _forward_backward(self, microbatches: Sequence[Microbatch]) -> tuple[list[float], Tensor]:
        """Gradients of the whole batch.

        Returns:
            the loss of each microbatch, none off the head; [entries] of each entry of the blend.
        """
        for stage in self.wrapped:
            stage.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run_schedule(microbatches, len(self.config.data.blend), forward_only=False)

    def measure(self, microbatches: Sequence[Microbatch], num_entries: int) -> Tensor:
        """Loss sums and trained positions of one forward pass; nothing is changed or kept.

        The caller has set the stages to evaluation and forbidden gradients.

        Returns:
            [2, entries] float64, to be added up over all ranks: sums, then positions.
        """
        _, sums = self._run_schedule(microbatches, num_entries, forward_only=True)
        return self._counts() * torch.stack([sums, trained_by_entry(microbatches, num_entries)])

    def _counts(self) -> bool:
        """Whether this rank answers for its replica, of which every rank holds the tokens: the
        tensor-parallel rank 0 of the stage with the head does."""
        return self.stages[-1].plan.has_head and self.ranks.at.tensor == 0

    def _run_schedule(
        self, microbatches: Sequence[Microbatch], num_entries: int, *, forward_only: bool
    ) -> tuple[list[float], Tensor]:
        """Megatron-Core's schedule. Returns what ``_forward_backward`` does."""
        for stage in self.stages:
            stage.set_is_first_microbatch()
        iterators = [iter(microbatches) for _ in self.wrapped]
        is_virtual = len(iterators) > 1
        sums = get_forward_backward_func()(
            forward_step_func=partial(
                _forward_step, device=self.ranks.device, num_entries=num_entries
            ),
            data_iterator=iterators if is_virtual else iterators[0],
            model=self.wrapped if is_virtual else self.wrapped[0],
            num_microbatches=len(microbatches),
            seq_length=self.config.data.sequence_length,
            micro_batch_size=self.config.train.rows_of_a_pass(),
            forward_only=forward_only,
            **self._messages,
        )
        by_entry = torch.zeros(num_entries, dtype=torch.float64)
        if not sums:
            return [], by_entry
        for losses in torch.stack([report["by_entry"] for report in sums]).cpu():
            by_entry += losses
        return torch.stack([report["loss_sum"] for report in sums]).tolist(), by_entry

    def _sum_over_ranks(
        self,
        loss_sum: float,
        by_entry: Tensor,
        grad_norm: float,
        microbatches: Sequence[Microbatch],
        should_stop: bool,
    ) -> tuple["_Totals", tuple[float | None, ...]]:
        """Figures of the step over all ranks, and the mean loss of each entry of the blend.

        Only the stage with the vision tower decodes images, and counts those it had to replace.
        """
        counts = self._counts()
        decodes = self.stages[0].plan.has_vision and self.ranks.at.tensor == 0
        here = _Totals(
            loss_sum=loss_sum if counts else 0.0,
            trained_tokens=counts
            * sum(int((batch.labels != IGNORE_LABEL).sum()) for batch in microbatches),
            images=counts * sum(len(batch.image_starts) for batch in microbatches),
            samples=counts * sum(batch.num_samples for batch in microbatches),
            positions=counts * sum(batch.filled_positions() for batch in microbatches),
            pairs=counts * sum(_pairs(batch) for batch in microbatches),
            substitutes=decodes * sum(len(batch.substitutes) for batch in microbatches),
            bad_gradients=not math.isfinite(grad_norm),
            stop_requests=should_stop,
        )
        if not counts:
            by_entry.zero_()
        tokens = trained_by_entry(microbatches, len(by_entry))
        figures = torch.cat([torch.tensor(here, dtype=torch.float64), counts * tokens, by_entry])
        total = figures.to(self.ranks.device)
        dist.all_reduce(total)
        tokens, sums = total[len(here) :].cpu().view(2, -1)
        return _Totals(*total[: len(here)].tolist()), means_by_entry(sums, tokens)


class _Totals(NamedTuple):
    """Figures of one step that ranks add up, in one reduction."""

    loss_sum: float
    trained_tokens: float
    images: float
    samples: float
    positions: float
    pairs: float
    substitutes: float
    bad_gradients: float
    stop_requests: float


def _pairs(batch: Microbatch) -> float:
    """Positions and those that each attends to; a row is one sample if lengths are unknown."""
    rows, length = batch.tokens.shape
    return sum(
        pairs_of(each) for row in batch.sample_lengths or ((length,),) * rows for each in row
    )


def means_by_entry(sums: Tensor, tokens: Tensor) -> tuple[float | None, ...]:
    """The mean loss of each entry, from [entries] sums and trained positions.

    None where nothing is trained, or the mean is not finite.
    """
    means = (float(s / n) if n else math.nan for s, n in zip(sums, tokens, strict=True))
    return tuple(mean if math.isfinite(mean) else None for mean in means)


def trained_by_entry(microbatches: Sequence[Microbatch], num_entries: int) -> Tensor:
    """[entries] float64: trained positions of each entry of the blend that is read."""
    tokens = torch.zeros(num_entries, dtype=torch.float64)
    for batch in microbatches:
        trained = batch.entry_of_positions()[batch.labels != IGNORE_LABEL]
        tokens += trained[trained >= 0].bincount(minlength=num_entries)
    return tokens


def loss_sum_and_count(labels: Tensor, loss_bs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss as a sum and a count, so that any grouping of samples gives one mean.

    Args:
        labels: [b, s].
        loss_bs: [b, s] cross entropy of every position.

    Returns:
        sum over trained positions, their number, and what is reported.
    """
    is_trained = labels != IGNORE_LABEL
    loss_sum = (loss_bs.float() * is_trained).sum()
    return loss_sum, is_trained.sum().int(), {"loss_sum": loss_sum.detach()}


def _messages(ranks: Ranks, stages: Sequence[VilaModel]) -> dict[str, Any]:
    """How this rank sends and receives, in the words of Megatron-Core's schedules; empty for their
    own way, and with virtual stages, whose schedule knows no other."""
    (stage, *more), pipeline = stages, ranks.layout.pipeline
    learns = stage.learns_below or any(weight.requires_grad for weight in stage.parameters())
    if learns or more or pipeline == 1:
        return {}
    communicator = NoGradientFromAbove(ranks.groups.pp, stage.config)
    return {"p2p_communicator": communicator, "pg_collection": ranks.groups}


def _shards_of_vision(
    stages: Sequence[VilaModel], optimizer: MegatronOptimizer
) -> Iterator[torch.nn.Parameter]:
    """What this rank's optimizer steps of vision tower and connector."""
    modules = [m for stage in stages for m in (stage.vision, stage.connector) if m is not None]
    theirs = {id(weight) for module in modules for weight in module.parameters()}
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:
            continue
        weights = [*part.model_float16_groups, *part.model_fp32_groups]
        shards = [*part.shard_fp32_from_float16_groups, *part.shard_fp32_groups]
        for weights_of_group, shards_of_group in zip(weights, shards, strict=True):
            for weight, shard in zip(weights_of_group, shards_of_group, strict=True):
                if id(weight) in theirs:
                    yield shard


def _forward_step(
    batches: Iterator[Microbatch],
    stage: torch.nn.Module,
    device: torch.device,
    num_entries: int,
) -> tuple[Tensor, partial[tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    batch = next(batches).to(device)  # one at a time: a step's images may be gigabytes
    return stage(batch), partial(loss_by_entry, batch, num_entries)


def loss_by_entry(
    batch: Microbatch, num_entries: int, loss_bs: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """``loss_sum_and_count``, and as ``by_entry`` what of it each entry has that is read.

    Args:
        batch: with its tensors on the device of the loss.
        num_entries: of what is read.
        loss_bs: [b, s] cross entropy of every position.
    """
    loss_sum, count, report = loss_sum_and_count(batch.labels, loss_bs)
    owners = sent(batch.entry_of_positions(), loss_bs.device)
    is_trained = batch.labels != IGNORE_LABEL
    losses = [
        torch.where(is_trained & (owners == entry), loss_bs.detach().float(), 0.0).sum()
        for entry in range(num_entries)
    ]
    empty = loss_bs.new_zeros(0, dtype=torch.float64)
    by_entry = torch.stack(losses).double() if losses else empty
    return loss_sum, count, report | {"by_entry": by_entry}


def _bring_to_host(stage: VilaModel) -> None:
    """Have the weights that learn wait on the host for the buffers, which take them from there.

    On the GPU they would be there twice while the buffers of their gradients are, too: as long as
    nothing else is, more than a step with recomputation takes.
    """
    waiting = [
        weight
        for weight in stage.parameters()
        if weight.is_cuda and weight.requires_grad and not is_primary(weight)
    ]
    for weight in waiting:
        weight.data = weight.data.cpu()
    if waiting:
        torch.cuda.empty_cache()  # the buffers are greater than what was given back


def _wrap(config: RunConfig, stage: VilaModel, index: int) -> DistributedDataParallel:
    reduction = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        grad_reduce_in_fp32=True,
        fp8_param_gather=config.train.fp8.primary_weights,
        reuse_grad_buf_for_mxfp8_param_ag=config.train.fp8.gathers_in_bf16(),
    )
    module = stage if config.train.precision == "fp32" else Float16Module(stage.config, stage)
    stage.quantize_primary_weights()  # which Float16Module would undo
    _bring_to_host(stage)
    # Only the first chunk of a rank reduces in buckets: the others' backward passes come earlier.
    return DistributedDataParallel(stage.config, reduction, module, disable_bucketing=index > 0)
