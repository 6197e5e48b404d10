"""Below the lowest part that learns nothing is computed backward, kept or sent."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from tests.support.ranks import run_ranks
from tests.support.tiny import GLOBAL_BATCH, tiny_microbatches, tiny_run
from vila_mc.config.trainable import learning_pieces, with_backward
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

Seen = dict[str, Any]
EVERYTHING = ("vision", "connector", "language")
SELECTIONS = [
    ("connector",),
    ("vision.layers[-1:]", "connector"),
    ("language.layers[2:]",),
    ("language.head",),
    ("language.embedding", "language.layers[3]"),
    EVERYTHING,
]
ABOVE = {"language.layers.2", "language.layers.3", "language.norm", "language.head"}
"""What the second of two stages holds."""


class Watch:
    """What one step does in each piece of this rank's stages."""

    def __init__(self, stages: Sequence[VilaModel]) -> None:
        self.backward: Counter[str] = Counter()
        self.kept_bytes: Counter[str] = Counter()
        self._within: list[str] = []
        for stage in stages:
            for piece, module in _modules(stage):
                module.register_forward_pre_hook(lambda *_, piece=piece: self._within.append(piece))
                module.register_forward_hook(self._leave)

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        piece = self._within.pop()
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.backward.update([piece]))

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Called for every tensor that autograd keeps; weights are there anyway."""
        if self._within and not isinstance(tensor, torch.nn.Parameter):
            self.kept_bytes[self._within[-1]] += tensor.nbytes
        return tensor


def _modules(stage: VilaModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """The module whose output a piece's gradient comes in by."""
    vision: Any = stage.vision
    language: Any = stage.language
    if vision is not None:
        yield "vision.embedding", vision.ln_pre
        yield from ((f"vision.layers.{i}", layer) for i, layer in enumerate(vision.decoder.layers))
        assert stage.connector is not None
        yield "connector", stage.connector
    if stage.plan.has_embedding:
        yield "language.embedding", language.embedding
    for index, layer in zip(stage.plan.layers, language.decoder.layers, strict=True):
        yield f"language.layers.{index}", layer
    if stage.plan.has_head:
        yield "language.norm", language.decoder.final_layernorm
        yield "language.head", language.output_layer


def _one_step(
    selections: Sequence[Sequence[str]], parallel: dict[str, Any], train: dict[str, Any]
) -> list[Seen]:
    seen = []
    sent = _count_sent_gradients()
    with distributed(tiny_run(parallel=parallel).parallel, seed=1, timeout_minutes=2) as ranks:
        for trainable in selections:
            config = tiny_run(parallel=parallel, train={"trainable": list(trainable), **train})
            trainer = Trainer(config, ranks, build_stages(config, ranks))
            watch = Watch(trainer.stages)
            sent.clear()
            with torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor):
                result = trainer.step(tiny_microbatches(config, ranks.at.data, ranks.layout.data))
            assert result.grad_norm > 0
            seen.append(
                {
                    "backward": set(watch.backward),
                    "kept": {piece for piece, size in watch.kept_bytes.items() if size},
                    "sent": sent["gradients"],
                }
            )
    return seen


def _count_sent_gradients() -> Counter[str]:
    sent: Counter[str] = Counter()
    communicate = P2PCommunicator._communicate

    def counted(self: Any, *, tensor_send_prev: Any, **options: Any) -> Any:
        sent["gradients"] += tensor_send_prev is not None
        return communicate(self, tensor_send_prev=tensor_send_prev, **options)

    P2PCommunicator._communicate = counted
    return sent


@pytest.mark.parametrize(
    ("world_size", "parallel", "train"),
    [
        (1, {}, {}),
        (2, {"pipeline": 2}, {}),
        (2, {"pipeline": 2}, {"recompute": "full"}),
        (2, {"pipeline": 2, "virtual": 2, "vision_placement": "dedicated"}, {}),
    ],
    ids=["one", "pp2", "pp2-recompute", "pp2-virtual2-dedicated"],
)
def test_nothing_below_what_learns(
    world_size: int, parallel: dict[str, Any], train: dict[str, Any]
) -> None:
    by_rank = run_ranks(world_size, _one_step, SELECTIONS, parallel, train)
    model = tiny_run().model
    for index, trainable in enumerate(SELECTIONS):
        expected = with_backward(learning_pieces(trainable, model), model)
        ranks = [rank[index] for rank in by_rank]
        assert set().union(*(rank["backward"] for rank in ranks)) == expected, trainable
        assert set().union(*(rank["kept"] for rank in ranks)) <= expected, trainable
        if parallel == {"pipeline": 2}:  # with virtual stages zeros are sent all the same
            crosses = not expected <= ABOVE
            assert sum(rank["sent"] for rank in ranks) == crosses * GLOBAL_BATCH, trainable
