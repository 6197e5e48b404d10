"""FLOPs that the mathematics of training asks for: of this model and what of it learns.

The one count: the planner foretells with it, and a run measures itself by it. A product of [m, k]
and [k, n] takes 2 m n k; its backward pass as many for the gradient of its input, if anything below
learns, and as many for that of its weight, if it learns. Attention takes 4 for each channel of each
pair of positions, and twice as many backward.

Not counted: padding and pairs that the mask hides, what is computed again, element-wise work
(norms, activations, the splice), and the optimizer.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vila_mc.config.lora import LoraConfig
from vila_mc.config.model import ModelConfig
from vila_mc.config.run import RunConfig

_Adapter = tuple[int, int, int]
"""Rank, inputs and outputs of a pair of low-rank factors."""


@dataclass(frozen=True, slots=True)
class Flops:
    """What a step takes grows with three numbers."""

    position: float
    """For each position that holds a sample: all of the language model but attention."""
    pair: float
    """For each position and each that it attends to, itself among them; see ``pairs_of``."""
    image: float
    """For each image, or tile of one: vision tower and connector."""

    def of(self, *, positions: float, pairs: float, images: float) -> float:
        """FLOPs of so many, forward and backward."""
        return self.position * positions + self.pair * pairs + self.image * images


def pairs_of(length: float) -> float:
    """Pairs of positions of a sample of ``length`` that causal attention looks at."""
    return length * (length + 1) / 2


def step_flops(config: RunConfig) -> Flops:
    """What the model of a run takes to train on, over all ranks, whatever the layout.

    Every position and image counts as if gradients reached all that learns from it: in a
    micro-batch without images, too, where only vision or connector learn.
    """
    learning = config.learning_pieces()
    visual = _Count()
    features = _tower(visual, config.model, config.lora, learning)
    _connector(visual, config.model, wants_features=features, learns="connector" in learning)
    text = _Count(wants=visual.wants or "language.embedding" in learning)
    _language(text, config.model, config.lora, learning)
    return Flops(text.products, text.attention, visual.products + visual.attention)


class _Count:
    """Adds up, from the input upwards; knows whether anything so far wants a gradient."""

    def __init__(self, *, wants: bool = False) -> None:
        self.products = self.attention = 0.0
        self.wants = wants

    def learn(self, learns: bool) -> None:
        """A norm or a table, which takes no product."""
        self.wants |= learns

    def product(
        self,
        rows: float,
        inputs: int,
        outputs: int,
        *,
        learns: bool = False,
        adapters: Sequence[_Adapter] = (),
        wants: bool | None = None,
    ) -> None:
        """A matrix and the adapters beside it; ``wants`` where it reads something else."""
        below = self.wants if wants is None else wants
        self.products += 2 * rows * inputs * outputs * (1 + below + learns)
        for rank, a_inputs, b_outputs in adapters:
            self.products += 2 * rows * rank * (a_inputs * (2 + below) + b_outputs * 3)
        self.wants |= below or learns or bool(adapters)

    def attend(self, pairs: float, width: int) -> None:
        """Scores and what they sum, over all heads."""
        self.attention += 4 * pairs * width * (3 if self.wants else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """Sizes of a transformer layer."""

    width: int
    queries: int
    """Over all heads."""
    keys: int
    """The same of keys, and of values."""
    ffn: int
    is_gated: bool
    attention: tuple[str, ...]
    """What LoRA calls the projections to queries, keys and values, then the one back."""
    feed_forward: tuple[str, ...]
    """The same of those in, then out."""
    rank: int
    """Of adapters; 0 without any."""
    targets: tuple[str, ...]
    """Projections that have some."""

    def add(self, to: _Count, rows: float, pairs: float, *, learns: bool) -> None:
        """Count one layer over ``rows`` positions."""
        width, ffn = self.width, self.ffn
        *into, back = self.attention
        sizes = dict(zip(into, (self.queries, self.keys, self.keys), strict=True))
        shapes = {name: (width, size) for name, size in sizes.items()}
        shapes |= {back: (self.queries, width), self.feed_forward[-1]: (ffn, width)}
        shapes |= dict.fromkeys(self.feed_forward[:-1], (width, ffn))

        def beside(names: Sequence[str]) -> list[_Adapter]:
            return [(self.rank, *shapes[name]) for name in names if name in self.targets]

        to.learn(learns)  # the norm in front
        total = self.queries + 2 * self.keys
        to.product(rows, width, total, learns=learns, adapters=beside(into))
        to.attend(pairs, self.queries)
        to.product(rows, self.queries, width, learns=learns, adapters=beside([back]))
        wide = ffn * (1 + self.is_gated)
        to.product(rows, width, wide, learns=learns, adapters=beside(self.feed_forward[:-1]))
        to.product(rows, ffn, width, learns=learns, adapters=beside(self.feed_forward[-1:]))


def _language(
    count: _Count, model: ModelConfig, lora: LoraConfig, learning: Collection[str]
) -> None:
    """Of one position, and of one pair."""
    language = model.language
    head = language.resolved_head_width()
    layer = _Layer(
        width=language.width,
        queries=language.heads * head,
        keys=language.kv_heads * head,
        ffn=language.ffn,
        is_gated=True,
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        feed_forward=("gate_proj", "up_proj", "down_proj"),
        rank=lora.rank or 0,
        targets=lora.targets_of("language"),
    )
    for number in range(language.layers):
        layer.add(count, 1, 1, learns=f"language.layers.{number}" in learning)
    count.learn("language.norm" in learning)
    learns_head = "language.head" in learning
    count.product(1, language.width, language.padded_vocab(), learns=learns_head)


def _tower(count: _Count, model: ModelConfig, lora: LoraConfig, learning: Collection[str]) -> bool:
    """Of one image. Returns whether its features want a gradient."""
    vision = model.vision
    positions, learns = vision.positions(), "vision.embedding" in learning
    count.product(vision.grid() ** 2, 3 * vision.patch_size**2, vision.width, learns=learns)
    layer = _Layer(
        width=vision.width,
        queries=vision.width,
        keys=vision.width,
        ffn=vision.ffn,
        is_gated=False,
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        feed_forward=("fc1", "fc2"),
        rank=lora.rank or 0,
        targets=lora.targets_of("vision"),
    )
    for number in range(vision.built_layers()):
        learns = f"vision.layers.{number}" in learning
        layer.add(count, positions, positions**2, learns=learns)
    return count.wants


def _connector(count: _Count, model: ModelConfig, *, wants_features: bool, learns: bool) -> None:
    """Of one image: from the tower's features to visual tokens."""
    connector, patches = model.connector, model.vision.grid() ** 2
    tokens, width = model.visual_tokens(), model.vision.width
    if connector.side is not None:  # patches are pooled along one axis, then along the other
        grid, side = model.vision.grid(), connector.side
        count.product(grid * width, grid, side)
        count.product(side * width, grid, side)
    for layer in model.connector_layers():
        if layer.is_table:  # queries, which nothing below reaches
            count.wants = learns
        if layer.is_norm:
            count.learn(learns)
        if layer.is_norm or layer.is_table:
            continue
        outputs, inputs = layer.shape
        if layer.reads_patches:
            count.product(patches, inputs, outputs, learns=learns, wants=wants_features)
        else:
            count.product(tokens, inputs, outputs, learns=learns)
        if layer.name.endswith(".value"):
            seen = patches if layer.reads_patches else tokens
            count.attend(tokens * seen, outputs)
