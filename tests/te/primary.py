"""What ranks do with weights that are kept in FP8. Imported under emulation alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.fp8_utils import is_float8tensor
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from tests.parity.layout_trace import Trace
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.save import PendingSave
from vila_mc.flow import Microbatch
from vila_mc.model.build import build_stages
from vila_mc.model.primary_weights import masters
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.train.step import Trainer

STEPS, STOP_AFTER = 3, 1
NO_FP8: dict[str, Any] = {"layers": "torch", "fp8": {}}


def story(
    seed: Path, directory: Path, parallel: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Begin in both ways, save, and go on in each from each: traces, and what else was seen."""
    plain, primary = {"fp8": options}, {"fp8": options | {"primary_weights": True}}
    first, second = directory / "plain", directory / "primary"
    with distributed(tiny_run(parallel=parallel).parallel, seed=1, timeout_minutes=2) as ranks:
        at = _Runs(ranks, parallel)
        return dict(
            plain=at.begin(plain, seed, first),
            primary=at.begin(primary, seed, second),
            num_primary=at.num_primary(),
            wrong_masters=at.wrong_masters,
            notices_infinity=at.notices_infinity(),
            primary_again=at.go_on(primary, second),
            primary_from_plain=at.go_on(primary, first),
            plain_from_primary=at.go_on(plain, second),
            bf16_from_primary=at.go_on(NO_FP8, second),
        )


def kept_in_fp8(train: dict[str, Any]) -> list[str]:
    """Names of the weights that are, after a step."""
    with distributed(tiny_run().parallel, seed=1) as ranks:
        runs = _Runs(ranks, {})
        runs._start(train, Path())
        runs._steps(1)
        return [name for name, _ in runs._primary()]


class _Runs:
    """Runs one after the other in one process."""

    def __init__(self, ranks: Ranks, parallel: dict[str, Any]) -> None:
        self.ranks, self.parallel = ranks, parallel
        self.wrong_masters: list[str] = []

    def begin(self, train: dict[str, Any], seed: Path, output: Path) -> Trace:
        """All steps from the seed, with a save on the way."""
        self._start(train, output, seed)
        trace = self._steps(STOP_AFTER)
        output.mkdir(exist_ok=True)
        manifest = Manifest(
            step=STOP_AFTER, samples_seen=0, config=self.trainer.config, layout=None, versions={}
        )
        stages, optimizer = self.trainer.stages, self.trainer.optimizer
        PendingSave(manifest, self.ranks, stages, optimizer, in_background=False).finish()
        return trace + self._steps(STEPS - STOP_AFTER)

    def go_on(self, train: dict[str, Any], source: Path) -> Trace:
        """The rest from a save."""
        self._start(train, source)
        self.trainer.resume(source)
        return self._steps(STEPS - STOP_AFTER)

    def num_primary(self) -> int:
        return len(self._primary())

    def notices_infinity(self) -> bool:
        """Whether a master that is not finite is seen, behind a weight that is."""
        was = self.trainer.weights_are_finite()
        next(masters(self.trainer.stages[0]))[0] = math.inf
        return was and not self.trainer.weights_are_finite()

    def _start(self, train: dict[str, Any], output: Path, seed: Path | None = None) -> None:
        FP8GlobalStateManager.reset()  # it is one for all models of a process
        section: dict[str, Any] = {
            "layers": "transformer_engine",
            "precision": "bf16",
            "output": str(output),
            "check_replicas_every": 1,
        }
        config = tiny_run(parallel=self.parallel, train=section | train)
        stages = build_stages(config, self.ranks)
        before = {}
        if seed is not None:
            load_weights(seed, stages)
            before = {name: w.detach().clone() for name, w in stages[0].named_parameters()}
        self.trainer = Trainer(config, self.ranks, stages)
        for name, weight in self._primary():
            if seed is not None and not _is_master_of(weight, before[name]):
                self.wrong_masters.append(name)

    def _primary(self) -> list[tuple[str, Any]]:
        named = self.trainer.stages[0].named_parameters()
        return [(name, weight) for name, weight in named if is_float8tensor(weight)]

    def _steps(self, steps: int) -> Trace:
        batches = self._microbatches()
        results = [self.trainer.step(batches) for _ in range(steps)]
        return [(result.loss, result.grad_norm) for result in results]

    def _microbatches(self) -> Sequence[Microbatch]:
        at, layout = self.ranks.at, self.ranks.layout
        return tiny_microbatches(self.trainer.config, at.data, layout.data)[:2]


def _is_master_of(weight: Any, before: torch.Tensor) -> bool:
    """Whether this rank's share of the masters, at the head or the tail, is what there was."""
    if weight.main_param is None:
        return True  # other ranks have all of it
    size, whole = len(weight.main_param), before.float().view(-1)
    ends = whole[:size], whole[len(whole) - size :]
    return any(torch.equal(weight.main_param, end) for end in ends)


def weights_and_masters(tensors: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Every weight of a checkpoint and its master, both as bytes of bf16."""
    found = []
    for name, master in tensors.items():
        weight = name.removeprefix("optimizer.state.param.")
        if weight != name:
            rounded = torch.from_numpy(master).view(torch.float32).bfloat16()
            found.append((weight, tensors[weight], rounded.view(torch.uint8).numpy()))
    return found
