"""Position embeddings of a tower that are stretched while they are loaded, for images of another
size."""

from collections.abc import Mapping, Sequence

from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor

from vila_mc.checkpoint.lazy import LazyTensor
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.config.model import VisionConfig
from vila_mc.config.run import RunConfig
from vila_mc.config.train import ModelPart
from vila_mc.model.positions import interpolate_positions

POSITIONS = "vision.position_embeddings.weight"
"""Key in a checkpoint."""


def positions_stretch(manifest: Manifest, config: RunConfig, parts: Sequence[ModelPart]) -> bool:
    """Whether a run that loads ``parts`` of a checkpoint has another grid of patches than it."""
    theirs, ours = manifest.config.model.vision, config.model.vision
    return "vision" in parts and theirs.grid() != ours.grid()


def stretching_line(manifest: Manifest, config: RunConfig, parts: Sequence[ModelPart]) -> str:
    """What to say of position embeddings that are stretched; empty if they are not."""
    if not positions_stretch(manifest, config, parts):
        return ""
    return interpolation_line(manifest.config.model.vision, config.model.vision)


def interpolation_line(theirs: VisionConfig, ours: VisionConfig) -> str:
    """That a tower sees images of another size than the one it was taken from."""
    return (
        f"position embeddings are interpolated from {theirs.grid()} x {theirs.grid()} patches to "
        f"{ours.grid()} x {ours.grid()}, for images of {ours.image_size} pixels"
    )


def stretched_positions(
    tensors: Mapping[str, LazyTensor], config: RunConfig, wanted: Mapping[str, ShardedTensor]
) -> dict[str, Tensor]:
    """The table of a stage that has it, which every tensor-parallel rank holds whole.

    Args:
        tensors: the checkpoint's parameters.
        config: of the run.
        wanted: the table by its name in the stage; empty where there is none.

    Raises:
        CheckpointError: bytes are not those that were written.
    """
    vision = config.model.vision
    return {
        name: interpolate_positions(
            tensors[POSITIONS].read().float(), vision.facts().class_tokens, vision.grid()
        ).to(shard.dtype)
        for name, shard in wanted.items()
    }
