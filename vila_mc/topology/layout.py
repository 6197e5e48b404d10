"""Ranks and their coordinates, in Megatron-Core's order: tensor, then data, then pipeline."""

from dataclasses import dataclass

from vila_mc.config.parallel import ParallelConfig


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where a rank stands along each axis of parallelism."""

    tensor: int
    data: int
    pipeline: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The degrees of parallelism of a run."""

    tensor: int
    pipeline: int
    data: int
    virtual: int = 1

    @staticmethod
    def of(parallel: ParallelConfig, world_size: int) -> "Layout":
        """The layout of ``world_size`` ranks. Raises ConfigError if they do not divide."""
        return Layout(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            data=parallel.data(world_size),
            virtual=parallel.virtual,
        )

    def world_size(self) -> int:
        """Ranks in all."""
        return self.tensor * self.data * self.pipeline

    def coordinates(self, rank: int) -> Coordinates:
        """Coordinates of ``rank``; tensor-parallel neighbours have consecutive ranks."""
        rest, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(rest, self.data)
        return Coordinates(tensor=tensor, data=data, pipeline=pipeline)

    def rank(self, at: Coordinates) -> int:
        """The inverse of ``coordinates``."""
        return at.tensor + self.tensor * (at.data + self.data * at.pipeline)

    def __str__(self) -> str:
        virtual = f" ({self.virtual} virtual stages each)" if self.virtual > 1 else ""
        return f"tensor {self.tensor} x pipeline {self.pipeline}{virtual} x data {self.data}"
