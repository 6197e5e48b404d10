"""How a model and its batch are divided among ranks."""

from dataclasses import dataclass
from typing import Literal

from vila_mc.config.checks import STRICT, require, require_positive
from vila_mc.errors import ConfigError

VisionPlacement = Literal["shared", "dedicated"]
ConnectorPlacement = Literal["auto", "replicated", "split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism. Their product with the data-parallel size is the world size."""

    __pydantic_config__ = STRICT

    tensor: int = 1
    """Ranks that share one layer's matrices. Keep within one node."""
    sequence: bool = False
    """Split norms and activations along the sequence between tensor-parallel ranks."""
    pipeline: int = 1
    """Pipeline stages."""
    virtual: int = 1
    """Chunks of layers per pipeline stage; above 1 the schedule is interleaved 1F1B."""
    vision_placement: VisionPlacement = "shared"
    """shared: vision runs on the first stage beside LLM layers. dedicated: the first stage holds
    vision, connector and embedding, and no LLM layer."""
    connector_placement: ConnectorPlacement = "auto"
    """Whether tensor-parallel ranks share the connector's matrices. replicated: each rank holds all
    of it. split: they share. auto: split where it has more than 64 Mi weights, and these divide."""
    context: int = 1
    """Ranks that share one long sequence. Only 1 works today."""
    layers_per_stage: tuple[int, ...] | None = None
    """LLM layers of each stage in the order a token flows through them, pipeline x virtual numbers
    such as [6, 9, 9, 8]; the first is 0 where vision is dedicated (default: spread evenly)."""
    schedule: Literal["1f1b"] = "1f1b"
    """Order of forward and backward passes. Only 1F1B works today (interleaved if virtual > 1)."""
    overlap_grad_reduce: bool = False
    """Reduce gradients between data-parallel ranks while the backward pass still runs."""

    def __post_init__(self) -> None:
        require_positive(
            "parallel",
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual=self.virtual,
            context=self.context,
        )
        require(
            self.context == 1,
            f"parallel.context is {self.context}, but context parallelism does not work yet. "
            "Use 1; long sequences are split by parallel.sequence.",
        )
        require(
            not self.sequence or self.tensor > 1,
            "parallel.sequence splits work between tensor-parallel ranks, but parallel.tensor "
            "is 1. Raise parallel.tensor or set parallel.sequence to false.",
        )
        require(
            self.virtual == 1 or self.pipeline > 1,
            f"parallel.virtual is {self.virtual} but parallel.pipeline is 1. Virtual stages need "
            "at least 2 pipeline stages.",
        )
        require(
            self.vision_placement == "shared" or self.pipeline > 1,
            "parallel.vision_placement is dedicated but parallel.pipeline is 1. A stage of its "
            "own for vision needs at least 2 pipeline stages; use shared otherwise.",
        )

    def model_ranks(self) -> int:
        """Ranks that together hold one copy of the model."""
        return self.tensor * self.pipeline

    def data(self, world_size: int) -> int:
        """Data-parallel replicas that ``world_size`` ranks make. Raises ConfigError: not whole."""
        model_ranks = self.model_ranks()
        if world_size % model_ranks:
            raise ConfigError(
                f"{world_size} ranks do not divide into tensor x pipeline = "
                f"{self.tensor} x {self.pipeline} = {model_ranks}. Use a multiple of "
                f"{model_ranks}, or change parallel.tensor / parallel.pipeline."
            )
        return world_size // model_ranks
