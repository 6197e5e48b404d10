"""A recipe and a layout as a job of the planner."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from vila_mc.config.fp8 import Fp8Config
from vila_mc.config.lora import LoraConfig, is_adapter
from vila_mc.config.model import ModelConfig
from vila_mc.config.parallel import ParallelConfig
from vila_mc.config.run import RunConfig
from vila_mc.config.trainable import piece_of, with_backward
from vila_mc.planner.job import Decoder, Engine, Job, Learns, Share, Stage, Tower
from vila_mc.planner.known import NOTHING, Known
from vila_mc.planner.work import HALF
from vila_mc.topology.layout import Layout
from vila_mc.topology.shapes import stage_parameters
from vila_mc.topology.stage_plan import StagePlan, plan_stages


@dataclass(frozen=True, slots=True)
class _LayerNumbers:
    """Numbers that one tensor-parallel rank holds of a layer of the language model."""

    own: int
    adapters: int
    matrices: int
    """Of its own, those of linear layers."""


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Those that learn, that have a backward pass, and whose products are computed in FP8."""

    learning: frozenset[str]
    backward: frozenset[str]
    in_fp8: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Divided:
    """What decides the stages: a search asks for the same with many micro-batches."""

    model: ModelConfig
    lora: LoraConfig
    parallel: ParallelConfig
    fp8: Fp8Config
    splits_connector: bool
    pieces: _Pieces

    @classmethod
    def of(cls, config: RunConfig, pieces: _Pieces) -> "_Divided":
        """What a recipe says of it."""
        splits = config.splits_connector()
        return cls(config.model, config.lora, config.parallel, config.train.fp8, splits, pieces)


def job_of(config: RunConfig, layout: Layout, known: Known = NOTHING) -> Job:
    """One step of a recipe.

    Args:
        config: the recipe; its ``parallel`` section and ``layout`` agree.
        layout: degrees of parallelism.
        known: what rows hold.
    """
    model, train = config.model, config.train
    learning = config.learning_pieces()
    backward = with_backward(learning | config.adapted_pieces(), model)
    pieces = _Pieces(learning, backward, config.fp8_pieces())
    vision_layers = sum(piece.startswith("vision.layers.") for piece in backward)
    images, most_images, attended = _rows(config, layout, known)
    return Job(
        decoder=_decoder(config),
        tower=_tower(config),
        length=config.data.sequence_length,
        attended=attended,
        rows=train.global_batch,
        micro_batch=train.rows_of_a_pass(),
        images=images,
        most_images=most_images,
        share=Share(
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            virtual=layout.virtual,
            data=layout.data,
        ),
        stages=_stages(_Divided.of(config, pieces)),
        recompute="full" if train.recompute == "full" else "none",
        recompute_vision=train.recompute == "full",
        learns=Learns(
            vision=vision_layers > 0,
            vision_layers=vision_layers,
            connector="connector" in learning,
            language=any(piece.startswith("language.") for piece in learning),
            tables="language.head" in learning,
            adapters=config.lora.rank or 0 if "language" in config.lora.parts() else 0,
        ),
        arithmetic="bf16" if train.fp8.recipe == "none" else "fp8",
        tower_in_fp8=_tower_in_fp8(pieces),
        block_scaled=train.fp8.recipe in ("blockwise", "mxfp8"),
        engine=Engine(
            name="vila_mc",
            turned=2 if model.language.facts().qk_norm else 0,
            angles=4,
            loss_bytes=4 if train.precision == "bf16" else 6,  # fused: probabilities in fp32
            sequence=config.parallel.sequence or layout.tensor == 1,
            overlap_gradients=config.parallel.overlap_grad_reduce,
        ),
    )


def _rows(config: RunConfig, layout: Layout, known: Known) -> tuple[float, float, float]:
    """Images of a row on average, and of one of the fullest pass; positions it attends to."""
    length, rows = config.data.sequence_length, config.train.rows_of_a_pass()
    if known.replay is None:
        full = length // config.model.tile_positions()
        images = full if known.images is None else known.images
        return images, images, length
    fullest = known.replay.dealt(layout.data, rows).fullest_pass() / rows
    return known.replay.images(), fullest, known.replay.attended()


def _decoder(config: RunConfig) -> Decoder:
    language = config.model.language
    return Decoder(
        layers=language.layers,
        width=language.width,
        heads=language.heads,
        kv_heads=language.kv_heads,
        head_width=language.resolved_head_width(),
        ffn=language.ffn,
        vocab=language.padded_vocab(),
        tied=language.tied_embeddings,
    )


def _tower(config: RunConfig) -> Tower:
    model, vision = config.model, config.model.vision
    ranks = config.parallel.tensor if config.splits_connector() else 1
    patches_a_token = vision.grid() ** 2 / model.visual_tokens()
    connector = sum(
        prod(layer.shape) * (patches_a_token if layer.reads_patches else 1) / ranks
        for layer in model.connector_layers()
        if not layer.is_norm and not layer.is_table
    )
    return Tower(
        layers=vision.built_layers(),
        width=vision.width,
        heads=vision.heads,
        ffn=vision.ffn,
        positions=vision.positions(),
        kept_wide=3 if vision.facts().activation == "quick_gelu" else 2,
        connector=connector,
        visual_tokens=model.visual_tokens(),
        pixels=3 * vision.image_size**2,
        connector_kept=model.connector_kept(HALF, ranks),
    )


def _layer_numbers(divided: _Divided) -> _LayerNumbers:
    """All layers are alike, and of a deep model there are many."""
    alone = StagePlan(layers=range(1), has_vision=False, has_embedding=False, has_head=False)
    own = adapters = matrices = 0
    for parameter in stage_parameters(divided.model, alone, divided.lora):
        numbers = prod(parameter.local_shape(divided.parallel.tensor))
        if is_adapter(parameter.name):
            adapters += numbers
        else:
            own += numbers
            matrices += numbers * (len(parameter.shape) == 2)
    return _LayerNumbers(own, adapters, matrices)


def _tower_in_fp8(pieces: _Pieces) -> tuple[int, int]:
    """Layers of the tower in FP8: those with a backward pass, and the others."""
    layers = {piece for piece in pieces.in_fp8 if piece.startswith("vision.layers.")}
    return len(layers & pieces.backward), len(layers - pieces.backward)


@lru_cache(maxsize=64)
def _stages(divided: _Divided) -> tuple[Stage, ...]:
    """In flow order."""
    layer = _layer_numbers(divided)
    plans = plan_stages(divided.model, divided.parallel)
    return tuple(_stage(divided, plan, layer) for plan in plans)


def _stage(divided: _Divided, plan: StagePlan, layer: _LayerNumbers) -> Stage:
    """What a stage holds of such layers and of what stands beside them."""
    tensor, is_primary = divided.parallel.tensor, divided.fp8.primary_weights
    pieces = divided.pieces
    layers = {f"language.layers.{number}" for number in plan.layers}
    learn, back = layers & pieces.learning, layers & pieces.backward
    weights = len(layers) * (layer.own + layer.adapters)
    learnt = len(learn) * layer.own + len(layers) * layer.adapters
    matrices = Counter(dict.fromkeys(layers & pieces.in_fp8, layer.matrices))
    for parameter in stage_parameters(
        divided.model,
        replace(plan, layers=range(0)),
        divided.lora,
        splits_connector=divided.splits_connector,
    ):
        numbers = prod(parameter.local_shape(tensor))
        weights += numbers
        adapts, piece = is_adapter(parameter.name), piece_of(parameter.name)
        learnt += numbers * (adapts or piece in pieces.learning)
        if piece in pieces.in_fp8 and len(parameter.shape) == 2 and not adapts:
            matrices[piece] += numbers
    primary = sum(matrices[piece] for piece in matrices if is_primary and piece in pieces.learning)
    forward = matrices.total() - primary
    turned = sum(matrices[piece] for piece in matrices if piece in pieces.backward) - primary
    in_fp8 = layers & pieces.in_fp8
    return Stage(
        layers=len(layers),
        has_vision=plan.has_vision,
        has_embedding=plan.has_embedding,
        has_head=plan.has_head,
        learning=len(learn),
        backward=len(back),
        weights=weights,
        learnt=learnt,
        in_fp8=(len(in_fp8 & learn), len(in_fp8 & back - learn), len(in_fp8 - back)),
        fp8_copies=forward + turned,
        gathered_in_fp8=0 if divided.fp8.gathers_in_bf16() else primary,
    )
