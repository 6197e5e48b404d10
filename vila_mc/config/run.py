"""A run: its sections together, and the rules between them."""

import math
from dataclasses import dataclass

from vila_mc.config.checks import STRICT, require
from vila_mc.config.data import DataConfig
from vila_mc.config.fp8 import Fp8Part
from vila_mc.config.lora import LoraConfig
from vila_mc.config.model import ModelConfig
from vila_mc.config.optimizer import OptimizerConfig
from vila_mc.config.parallel import ParallelConfig
from vila_mc.config.train import DEFAULT_VALIDATE_EVERY, MODEL_PARTS, TrainConfig
from vila_mc.config.trainable import learning_pieces, pieces

_LARGE_CONNECTOR = 2**26
"""Weights from which on a copy on every rank costs more memory than sharing costs messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that decides what a training run does."""

    __pydantic_config__ = STRICT

    model: ModelConfig = ModelConfig()
    """Shape of the model."""
    data: DataConfig = DataConfig()
    """What it reads."""
    parallel: ParallelConfig = ParallelConfig()
    """How it is divided among ranks."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it learns."""
    train: TrainConfig = TrainConfig()
    """What is trained, for how long, kept where."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters beside frozen weights."""

    def __post_init__(self) -> None:
        tensor, language, vision = self.parallel.tensor, self.model.language, self.model.vision
        for name, value in (
            ("model.language.kv_heads", language.kv_heads),
            ("model.language.ffn", language.ffn),
            ("the padded vocabulary", language.padded_vocab()),
            ("model.vision.heads", vision.heads),
            ("model.vision.ffn", vision.ffn),
        ):
            require(
                value % tensor == 0,
                f"{name} {value} is not a multiple of parallel.tensor {tensor}. Lower "
                "parallel.tensor or change the model.",
            )
        length = self.data.sequence_length
        require(
            not self.parallel.sequence or length % tensor == 0,
            f"data.sequence_length {length} is not a multiple of parallel.tensor {tensor}, which "
            "parallel.sequence needs. Change one of them.",
        )
        require(
            length <= language.max_positions,
            f"data.sequence_length {length} is greater than model.language.max_positions "
            f"{language.max_positions}. Lower the first or raise the second.",
        )
        require(
            self.train.epochs is None or len(self.data.blend) < 2 or self.data.by_epochs(),
            "train.epochs counts passes through data.blend, and a blend by weights has no end. "
            "Give each of its entries epochs, or set train.steps.",
        )
        require(
            self.data.num_validation_sets() > 0
            or self.train.validate_every in (0, DEFAULT_VALIDATE_EVERY),
            f"train.validate_every is {self.train.validate_every}, but data.validation is empty. "
            "Name datasets to measure the loss on, [{path: PREFIX}], or set data.held_out.",
        )
        self._check_best()
        require(
            self.model.image_positions() < length,
            f"one image takes {_most(self.model)} positions, but data.sequence_length "
            f"is {length}. Raise it, or {_advice(self.model)}.",
        )
        self.learning_pieces()
        self._check_what_learns()
        self._check_rates()
        require(
            not self.splits_connector() or self.model.connector_divides(tensor),
            f"parallel.connector_placement is split, but the matrices or heads of the connector "
            f"{self.model.connector.title()} do not divide by parallel.tensor {tensor}. Use "
            "replicated.",
        )
        self._check_fp8()

    def learning_pieces(self) -> frozenset[str]:
        """The pieces that ``train.trainable`` names, see ``config.trainable``."""
        return learning_pieces(self.train.trainable, self.model)

    def splits_connector(self) -> bool:
        """Whether tensor-parallel ranks share the connector's matrices."""
        tensor, how = self.parallel.tensor, self.parallel.connector_placement
        if tensor == 1 or how != "auto":
            return tensor > 1 and how == "split"
        weights = sum(math.prod(layer.shape) for layer in self.model.connector_layers())
        return weights > _LARGE_CONNECTOR and self.model.connector_divides(tensor)

    def validates(self) -> bool:
        """Whether the loss on data that nothing learns from is measured at all."""
        return self.data.num_validation_sets() > 0 and self.train.validate_every > 0

    def adapted_pieces(self) -> frozenset[str]:
        """The pieces whose weights stay as they are beside the adapters of ``lora``."""
        parts = self.lora.parts()
        return frozenset(
            piece
            for piece in pieces(self.model)
            if piece.startswith(tuple(f"{part}.layers." for part in parts))
        )

    def _check_best(self) -> None:
        save, validate = self.train.save_every, self.train.validate_every
        require(
            not self.train.keep_best or self.validates(),
            "train.keep_best compares checkpoints by their validation loss, which is not measured. "
            "Name datasets in data.validation or set data.held_out, with train.validate_every.",
        )
        require(
            not self.train.keep_best or save % validate == 0,
            f"train.keep_best needs a validation before every save, but train.save_every {save} is "
            f"no multiple of train.validate_every {validate}. Change one of them.",
        )

    def _check_what_learns(self) -> None:
        trainable, adapted = self.train.trainable, self.lora.parts()
        require(
            bool(trainable or adapted),
            f"train.trainable is empty; name at least one of {', '.join(MODEL_PARTS)}. Without "
            "any, adapters alone can learn: set lora.rank.",
        )
        whole = (*adapted, *(f"{part}.layers" for part in adapted))
        both = [name for name in trainable if name.partition("[")[0] in whole]
        rest = ", ".join(name for name in trainable if name not in both)
        require(
            not both,
            f"train.trainable names {', '.join(both)}, whose layers stay as they are beside the "
            f"adapters of lora.rank {self.lora.rank}. Set train.trainable to [{rest}].",
        )
        widths = {"language": self.model.language.width, "vision": self.model.vision.width}
        for part in adapted:
            require(
                self.lora.rank is None or self.lora.rank <= widths[part],
                f"lora.rank is {self.lora.rank}, more than model.{part}.width {widths[part]}: an "
                "adapter would be larger than what it adapts. Lower it.",
            )

    def _check_rates(self) -> None:
        """What is said of rates and decays must reach something that learns."""
        adapted, trainable = self.lora.parts(), ", ".join(self.train.trainable)
        decaying = {*adapted, *(piece.split(".")[0] for piece in self._decaying_pieces())}
        learning = {*adapted, *(piece.split(".")[0] for piece in self.learning_pieces())}
        for part, option in self.optimizer.given_of_parts():
            name = f"optimizer.parts.{part}.{option}"
            beside = f" and lora gives {part} no adapter" if adapted else ""
            require(
                part in learning,
                f"{name} is given, but {part} does not learn: train.trainable is [{trainable}]"
                f"{beside}. Leave it out, or name {part} in train.trainable.",
            )
            require(
                option != "weight_decay" or part in decaying,
                f"{name} is given, but of {part} only norms learn, which never decay: "
                f"train.trainable is [{trainable}]. Leave it out.",
            )
        require(
            bool(decaying) or self.optimizer.weight_decay == 0,
            f"optimizer.weight_decay is {self.optimizer.weight_decay}, but only norms learn, which "
            f"never decay: train.trainable is [{trainable}]. Set it to 0.",
        )

    def _decaying_pieces(self) -> frozenset[str]:
        """The pieces that learn and hold more than norms."""
        return self.learning_pieces() - {"language.norm"}

    def _check_fp8(self) -> None:
        """What Transformer Engine asserts of the shapes of its products, said beforehand."""
        fp8, tensor, multiple = self.train.fp8, self.parallel.tensor, self.train.fp8.alignment()
        language, vision = self.model.language, self.model.vision
        head = language.resolved_head_width()
        sizes: dict[str, int] = {}
        if fp8.concerns("language"):
            shards = tensor if self.parallel.sequence else 1
            sizes |= {
                "data.sequence_length": self.data.sequence_length // shards,
                "model.language.width": language.width,
                "model.language.ffn": language.ffn // tensor,
                "model.language.heads x head width": language.heads * head // tensor,
            }
        if fp8.concerns("vision"):
            sizes |= {
                "model.vision.width": vision.width // tensor,
                "model.vision.ffn": vision.ffn // tensor,
            }
        for name, size in sizes.items():
            require(
                size % multiple == 0,
                f"{name} is {size} on one rank, and train.fp8.recipe {fp8.recipe} needs multiples "
                f"of {multiple}. Change it or parallel.tensor, or take that part out of "
                "train.fp8.parts.",
            )
        self._check_fp8_layers()

    def _check_fp8_layers(self) -> None:
        """What is asked of FP8 must reach some layer."""
        fp8 = self.train.fp8
        first, last = fp8.first_layers_bf16, fp8.last_layers_bf16
        for part in filter(fp8.concerns, fp8.parts):
            depth = self._depth(part)
            require(
                first + last < depth,
                f"train.fp8.first_layers_bf16 {first} and last_layers_bf16 {last} leave none of "
                f"the {depth} layers of {part} to FP8. Lower them, or take that part out of "
                "train.fp8.parts.",
            )
        require(
            not fp8.primary_weights or not self.fp8_pieces().isdisjoint(self.learning_pieces()),
            "train.fp8.primary_weights keeps weights in FP8 that learn, and no layer that computes "
            f"in FP8 does: train.trainable is [{', '.join(self.train.trainable)}]. Leave it out.",
        )

    def fp8_pieces(self) -> frozenset[str]:
        """Layers whose matrix products are computed in FP8, such as ``language.layers.3``."""
        fp8 = self.train.fp8
        return frozenset(
            f"{part}.layers.{layer}"
            for part in fp8.parts
            for layer in fp8.layers(part, self._depth(part))
        )

    def _depth(self, part: Fp8Part) -> int:
        """Layers of a part that run."""
        model = self.model
        return model.vision.built_layers() if part == "vision" else model.language.layers

    def check_world(self, world_size: int) -> None:
        """Refuse a number of ranks that this run cannot use. Raises ConfigError."""
        microbatches = self.train.microbatches(self.parallel.data(world_size))
        pipeline = self.parallel.pipeline
        require(
            self.parallel.virtual == 1 or microbatches % pipeline == 0,
            f"the interleaved schedule needs microbatches per step ({microbatches}) in multiples "
            f"of parallel.pipeline ({pipeline}). Change train.global_batch or train.micro_batch.",
        )


def _most(model: ModelConfig) -> str:
    """Positions of the largest image, and where they come from."""
    tiles, each = model.vision.most_tiles(), model.tile_positions()
    return f"{each}" if tiles == 1 else f"up to {tiles} x {each} = {tiles * each}"


def _advice(model: ModelConfig) -> str:
    is_cut = model.vision.most_tiles() > 1
    return "lower model.vision.max_tiles" if is_cut else "use a downsampling connector"
