"""What is planned: a model's sizes, a batch and how both are shared out.

A job is smaller than a recipe, and wider: measurements that others published are jobs, too.
"""

from dataclasses import dataclass, field
from typing import Literal

from vila_mc.topology.hardware import Arithmetic

Software = Literal[
    "megatron", "vila_mc", "tests", "loongforge", "nanotron", "veomni", "fsdp", "hugging_face"
]
"""Engines whose time beside the hardware's is fitted: Megatron-Core with tuned recipes, this one,
Megatron-Core's own deterministic tests, LoongForge, nanotron, VeOmni, others on torch's
FSDP2, and transformers with
DeepSpeed or alone."""
Recompute = Literal["none", "attention", "full"]
Sharding = Literal["none", "optimizer", "gradients", "weights"]
"""What data-parallel ranks share out: nothing, the optimizer's state (Megatron's distributed
optimizer, ZeRO-1), gradients too (ZeRO-2), weights too (ZeRO-3, FSDP)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A language model; attention is causal."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    vocab: int
    """Rows of the output table."""
    gated: bool = True
    """Whether the feed-forward layer has a gate beside it (SwiGLU)."""
    tied: bool = False
    """Whether the output layer is the embedding's table."""

    def query_width(self) -> int:
        """Numbers of a position's queries, over all heads."""
        return self.heads * self.head_width

    def qkv_width(self) -> int:
        """Numbers of a position's queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.head_width

    def layer_weights(self) -> int:
        """Numbers in a layer's matrices."""
        return self.width * (self.qkv_width() + self.query_width() + (2 + self.gated) * self.ffn)

    def table_weights(self) -> int:
        """Numbers in one of the tables of the vocabulary."""
        return self.vocab * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A vision transformer, whose attention is not causal, and the connector behind it."""

    layers: int
    width: int
    heads: int
    ffn: int
    positions: int
    """Of one image."""
    attended: float = 0
    """Positions that one position attends to, on average; all of its image if 0."""
    gated: bool = False
    """As the decoder's."""
    kept_wide: int = 2
    """Times that the width of its feed-forward layer is kept for the backward pass: before and
    after the activation, and once more where that is made of several operators (quick GELU)."""
    connector: float = 0
    """Numbers in the connector's matrices on one tensor-parallel rank, as often as a visual token
    meets them: those that read every patch count for each patch that a token stands for."""
    visual_tokens: int = 0
    """Positions of the language model that an image takes, each a row of the connector's."""
    pixels: int = 0
    """Numbers of an image."""
    connector_kept: float = 0
    """Bytes that an image leaves for the connector's backward pass on one tensor-parallel rank."""

    def layer_weights(self) -> int:
        """Numbers in a layer's matrices."""
        return self.width * (4 * self.width + (2 + self.gated) * self.ffn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Degrees of parallelism."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    context: int = 1
    data: int = 1

    def ranks(self) -> int:
        """Ranks in all."""
        return self.tensor * self.pipeline * self.context * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One chunk of the pipeline, in the order a token flows through them."""

    layers: int
    has_vision: bool
    has_embedding: bool
    has_head: bool
    learning: int | None = None
    """Of its layers, those whose weights learn; as ``Learns`` says if none."""
    backward: int | None = None
    """Of its layers, those that have a backward pass; as ``Learns`` says if none."""
    weights: int | None = None
    """Numbers that one tensor-parallel rank holds; matrices alone are counted if none."""
    learnt: int | None = None
    """Of them, those that learn."""
    in_fp8: tuple[int, int, int] | None = None
    """Where the job is in FP8, how many of the layers are that learn, of those that only have a
    backward pass, and of the others; all if none."""
    fp8_copies: int = 0
    """Bytes of the copies in FP8 that one tensor-parallel rank holds of weights beside them."""
    gathered_in_fp8: int = 0
    """Of ``learnt``, those that data-parallel ranks gather in FP8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learns:
    """What a step changes."""

    vision: bool = False
    vision_layers: int | None = None
    """Of the tower's layers, the last ones that learn, where not all do."""
    connector: bool = True
    language: bool = True
    tables: bool = True
    """The embedding and the output layer."""
    adapters: int = 0
    """Rank of low-rank adapters beside the frozen matrices of the language model; 0 is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What is known of the code that runs the job."""

    name: Software = "megatron"
    attention: Literal["flash", "unfused"] = "flash"
    sharding: Sharding = "optimizer"
    sequence: bool = True
    """Norms and residuals split along the sequence between tensor-parallel ranks."""
    gradient_bytes: int = 4
    """Of a gradient that ranks sum."""
    kept_gradients: int = 0
    """Bytes of a gradient beside the one that ranks sum."""
    overlap_gradients: bool = True
    """Whether gradients travel while the backward pass runs."""
    overlap_tensor: bool = False
    """Whether tensor-parallel transfers hide behind matrix products (userbuffers)."""
    ulysses: bool = False
    """Whether context parallelism exchanges heads (all-to-all) rather than keys and values."""
    turned: int = 0
    """Copies of queries and keys that are kept beside what they were cut from, which is kept whole
    where they have norms."""
    angles: int = 0
    """Numbers that a channel of a head keeps of its position: cosine and sine, for queries and for
    keys, where no rotation is fused."""
    loss_bytes: int = 6
    """Of a logit, kept for the backward pass; and again while its gradient is there."""
    calls: float = 0.2
    """Collectives that a layer's gradients (and weights) take: fewer than one where they share
    buckets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One optimizer step of one run."""

    decoder: Decoder
    tower: Tower | None
    length: int
    """Positions of a row."""
    attended: float
    """Positions of the sample that a position stands in, on average: the row's length unless
    several samples share it."""
    rows: int
    """Of a step, over all ranks."""
    micro_batch: int
    """Rows of a pass of one rank."""
    images: float = 0
    """Of a row, on average."""
    most_images: float | None = None
    """Of a row of the fullest microbatch, which decides what is held; ``images`` if none."""
    share: Share = field(default_factory=Share)
    stages: tuple[Stage, ...] = ()
    recompute: Recompute = "none"
    recomputed: float = 1.0
    """Share of the language model's layers that ``recompute`` is about."""
    recompute_vision: bool = False
    """Whether the tower's layers are computed again, too, where they learn."""
    learns: Learns = field(default_factory=Learns)
    arithmetic: Arithmetic = "bf16"
    """Of the language model's layers, and of what else is said to be in FP8."""
    tower_in_fp8: tuple[int, int] = (0, 0)
    """Where the job is in FP8, how many of the tower's layers are that learn, and of the others."""
    block_scaled: bool = False
    """FP8 whose scales belong to blocks of numbers, each scaled before its product."""
    engine: Engine = field(default_factory=Engine)

    def held_images(self) -> float:
        """Images that a microbatch holds at most."""
        most = self.images if self.most_images is None else self.most_images
        return self.micro_batch * most

    def microbatches(self) -> int:
        """Passes of a rank in a step."""
        return max(1, round(self.rows / (self.share.data * self.micro_batch)))

    def positions(self) -> float:
        """Positions of a microbatch on one rank, before tensor parallelism."""
        return self.micro_batch * self.length / self.share.context

    def learning_layers(self, stage: Stage) -> int:
        """Layers of a stage whose weights learn."""
        if stage.learning is not None:
            return stage.learning
        return stage.layers if self.learns.language else 0

    def backward_layers(self, stage: Stage) -> int:
        """Layers of a stage that have a backward pass: those above the lowest that learns."""
        if stage.backward is not None:
            return stage.backward
        learns = self.learns
        below = self.tower is not None and (learns.vision or learns.connector)
        return stage.layers if learns.language or learns.adapters or below else 0

    def layers_by_pass(self, stage: Stage) -> tuple[int, int, int]:
        """Layers of a stage that learn, that only have a backward pass, and the others."""
        learning, backward = self.learning_layers(stage), self.backward_layers(stage)
        return learning, backward - learning, stage.layers - backward

    def learning_tower(self) -> int:
        """Layers of the tower that learn, and so have a backward pass."""
        if self.tower is None or not self.learns.vision:
            return 0
        if self.learns.vision_layers is None:
            return self.tower.layers
        return self.learns.vision_layers

    def chunks(self) -> tuple[Stage, ...]:
        """The stages, as even as they can be if none are given."""
        return self.stages or even_stages(self)


def even_stages(job: Job) -> tuple[Stage, ...]:
    """Layers spread evenly; vision and embedding on the first stage, the head on the last."""
    count = job.share.pipeline * job.share.virtual
    base, extra = divmod(job.decoder.layers, count)
    return tuple(
        Stage(
            layers=base + (1 <= stage <= extra if count > 1 else 0),
            has_vision=stage == 0 and job.tower is not None,
            has_embedding=stage == 0,
            has_head=stage == count - 1,
        )
        for stage in range(count)
    )
