"""The operations of vila_mc/kernels/reference.py, computed by the emulated CUDA kernels."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.support.emulation import Build, Emulator, Run, Traffic

FORMATS = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""Number formats of the kernels, as csrc/emulation/ops.cpp numbers them."""


@dataclass
class EmulatedOps:
    """Same names and arguments as the twins in plain torch; CPU tensors in and out."""

    emulator: Emulator
    build: Build = "plain"
    order: int = 0
    """Seed of the order in which threads run; 0 is by number."""
    multiprocessors: int = 2
    blocks_each: int = 1
    """The device to play: few blocks, so that each goes through several tokens."""
    traffic: dict[str, Traffic] = field(default_factory=dict)
    """What the latest call moved, by tensor."""

    def downsample_gather(self, features: Tensor, factor: int, has_cls: bool) -> Tensor:
        sizes = _blocks(features, factor, has_cls)
        tokens = features.new_empty(_tokens(sizes))
        sizes["element_bytes"] = features.element_size()
        return self._run(
            "downsample_gather", sizes, {"patches": features}, {"tokens": tokens}
        ).outputs["tokens"]

    def downsample_gather_backward(
        self, grad: Tensor, grid: int, factor: int, has_cls: bool
    ) -> Tensor:
        width = grad.shape[2] // factor**2
        features = grad.new_empty((grad.shape[0], has_cls + grid * grid, width))
        sizes = _blocks(features, factor, has_cls)
        sizes["element_bytes"] = grad.element_size()
        return self._run(
            "downsample_gather_backward",
            sizes,
            {"tokens_grad": grad},
            {"patches_grad": features},
        ).outputs["patches_grad"]

    def downsample_layernorm(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        factor: int,
        has_cls: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes = _blocks(features, factor, has_cls)
        outputs = _statistics(features, sizes)
        outputs["normal"] = features.new_empty(_tokens(sizes))
        made = self._run(
            "downsample_layernorm",
            sizes | {"epsilon": float(eps), "format": FORMATS[features.dtype]},
            {"patches": features, "weight": weight, "bias": bias},
            outputs,
        ).outputs
        return made["normal"], made["mean"], made["rstd"]

    def downsample_layernorm_backward(
        self,
        grad: Tensor,
        features: Tensor,
        weight: Tensor,
        mean: Tensor,
        rstd: Tensor,
        factor: int,
        has_cls: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes = _blocks(features, factor, has_cls)
        parts = max(1, self.multiprocessors * self.blocks_each)
        outputs = {
            "patches_grad": torch.empty_like(features),
            "partial": torch.empty((parts, 2, grad.shape[2])),
            "weight_grad": torch.empty_like(weight),
            "bias_grad": torch.empty_like(weight),
        }
        made = self._run(
            "downsample_layernorm_backward",
            sizes | {"format": FORMATS[features.dtype]},
            {"grad": grad, "patches": features, "weight": weight, "mean": mean, "rstd": rstd},
            outputs,
        ).outputs
        return made["patches_grad"], made["weight_grad"], made["bias_grad"]

    def splice_visual(
        self,
        text: Tensor,
        visual: Tensor,
        image_starts: Tensor,
        sequence_first: bool,
        first_position: int,
        sequence_length: int,
    ) -> Tensor:
        sizes = _sequence(text, visual.shape[1], image_starts, sequence_first, first_position)
        return self._run(
            "splice_visual",
            sizes,
            {"text": text, "visual": visual, "starts": image_starts},
            {"spliced": torch.empty_like(text), "map": _map(text)},
        ).outputs["spliced"]

    def splice_visual_text_grad(
        self,
        grad: Tensor,
        image_starts: Tensor,
        num_visual: int,
        sequence_first: bool,
        first_position: int,
        sequence_length: int,
    ) -> Tensor:
        sizes = _sequence(grad, num_visual, image_starts, sequence_first, first_position)
        return self._run(
            "splice_visual_text_grad",
            sizes,
            {"grad": grad, "starts": image_starts},
            {"text_grad": torch.empty_like(grad), "map": _map(grad)},
        ).outputs["text_grad"]

    def splice_visual_visual_grad(
        self,
        grad: Tensor,
        image_starts: Tensor,
        num_visual: int,
        sequence_first: bool,
        first_position: int,
        sequence_length: int,
    ) -> Tensor:
        sizes = _sequence(grad, num_visual, image_starts, sequence_first, first_position)
        visual = grad.new_empty((image_starts.shape[0], num_visual, grad.shape[2]))
        return self._run(
            "splice_visual_visual_grad",
            sizes,
            {"grad": grad, "starts": image_starts},
            {"visual_grad": visual},
        ).outputs["visual_grad"]

    def normalize_patchify(self, images: Tensor, table: Tensor, patch: int) -> Tensor:
        n, channels, y, x = images.shape
        patches = table.new_empty((n, (y // patch) * (x // patch), channels * patch * patch))
        sizes = {"count": n, "height": y, "width": x, "patch": patch}
        return self._run(
            "normalize_patchify",
            sizes | {"format": FORMATS[table.dtype]},
            {"images": images, "table": table},
            {"patches": patches},
        ).outputs["patches"]

    def _run(
        self,
        op: str,
        numbers: dict[str, Any],
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
    ) -> Run:
        device = {"multiprocessors": self.multiprocessors, "blocks_each": self.blocks_each}
        run = self.emulator.run(
            op,
            numbers=numbers | device | {"order": self.order},
            inputs=inputs,
            outputs=outputs,
            build=self.build,
        )
        self.traffic = run.traffic
        return run


def _blocks(features: Tensor, factor: int, has_cls: bool) -> dict[str, Any]:
    images, patches, width = features.shape
    grid = round((patches - has_cls) ** 0.5)
    sizes = {"images": images, "grid": grid, "width": width}
    return sizes | {"prefix": int(has_cls), "factor": factor}


def _tokens(sizes: dict[str, Any]) -> tuple[int, int, int]:
    side = -(-sizes["grid"] // sizes["factor"])
    return sizes["images"], side * side, sizes["factor"] ** 2 * sizes["width"]


def _statistics(features: Tensor, sizes: dict[str, Any]) -> dict[str, Tensor]:
    rows = _tokens(sizes)[:2]
    return {name: features.new_empty(rows, dtype=torch.float32) for name in ("mean", "rstd")}


def _sequence(
    text: Tensor, num_visual: int, image_starts: Tensor, sequence_first: bool, first_position: int
) -> dict[str, Any]:
    rows, positions = text.shape[:2]
    if sequence_first:
        rows, positions = positions, rows
    return {
        "rows": rows,
        "positions": positions,
        "first_position": first_position,
        "sequence_first": int(sequence_first),
        "images": image_starts.shape[0],
        "each": num_visual,
        "row_bytes": text.shape[2] * text.element_size(),
    }


def _map(text: Tensor) -> Tensor:
    return torch.empty(text.shape[:2], dtype=torch.int32)
