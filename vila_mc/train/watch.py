"""Where a rank's time goes: what is marked in a step, and what the marks add up to."""

import resource
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer.optimizer import MegatronOptimizer

from vila_mc.model.vila_model import VilaModel
from vila_mc.observe.spans import Span, Spans
from vila_mc.observe.step_times import StepTimes
from vila_mc.parallel.groups import Ranks


def watch(stages: Sequence[VilaModel], optimizer: MegatronOptimizer, spans: Spans) -> None:
    """Have ``spans`` told of passes, messages, reductions and updates from now on.

    Args:
        stages: this rank's stages.
        optimizer: theirs.
        spans: takes the time.
    """
    for stage in stages:
        stage.config.timers = spans
        stage.config.finalize_model_grads_func = _timed(
            stage.config.finalize_model_grads_func, spans
        )
        if stage.vision is not None and stage.connector is not None:
            _watch_vision(stage.vision, stage.connector, spans)
    for part in optimizer.chained_optimizers:
        part.config.timers = spans


def _timed(finalize: Callable[..., Any], spans: Spans) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        with spans.span("reduction"):
            return finalize(*arguments, **options)

    return timed


def _watch_vision(tower: Any, connector: Any, spans: Spans) -> None:
    """From the tower's patches to the connector's visual tokens, forward."""
    timer = spans("vision")
    tower.register_forward_pre_hook(lambda *_: timer.start())
    connector.register_forward_hook(lambda *_: timer.stop())


def gather_times(
    ranks: Ranks, seconds: float, spans: Sequence[Span]
) -> tuple[list[StepTimes], float]:
    """The times of every rank, by rank, and the GiB of the fullest; together on all ranks.

    Args:
        ranks: this rank and its groups.
        seconds: that the step took here.
        spans: what was done in it here.
    """
    mine = StepTimes.of(seconds, spans, has_stages=ranks.layout.pipeline > 1)
    here = torch.tensor([*mine, _peak_memory_gib(ranks.device)], dtype=torch.float64)
    num_ranks = ranks.layout.world_size()
    everywhere = torch.empty(num_ranks * len(here), dtype=torch.float64, device=ranks.device)
    dist.all_gather_into_tensor(everywhere, here.to(ranks.device))
    rows = everywhere.view(num_ranks, -1).tolist()
    return [StepTimes(*times) for *times, _ in rows], max(row[-1] for row in rows)


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    return peak / 2**30
