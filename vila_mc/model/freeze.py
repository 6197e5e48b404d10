"""Which parts of a model learn."""

from collections.abc import Collection

from torch import nn

from vila_mc.config.train import MODEL_PARTS, ModelPart


def freeze_all_but(model: nn.Module, trainable: Collection[ModelPart]) -> None:
    """Freeze every part of a VilaModel that is not named.

    Frozen parameters get no gradient buffer and no optimizer state, so this must come before the
    model is wrapped for data parallelism.
    """
    for part in MODEL_PARTS:
        module = getattr(model, part)
        if module is not None:
            module.requires_grad_(part in trainable)
