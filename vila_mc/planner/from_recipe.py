"""A recipe and a layout as a job of the planner."""

from math import prod

from vila_mc.config.lora import is_adapter
from vila_mc.config.run import RunConfig
from vila_mc.config.trainable import piece_of, with_backward
from vila_mc.planner.job import Decoder, Engine, Job, Learns, Share, Stage, Tower
from vila_mc.topology.layout import Layout
from vila_mc.topology.shapes import stage_parameters
from vila_mc.topology.stage_plan import StagePlan, plan_stages


def job_of(config: RunConfig, layout: Layout, images: float | None = None) -> Job:
    """One step of a recipe.

    Args:
        config: the recipe; its ``parallel`` section and ``layout`` agree.
        layout: degrees of parallelism.
        images: squares of a row on average, each an image or a tile of one; as many as a row has
            room for if none, which is the worst.
    """
    model, train = config.model, config.train
    learning, backward = config.learning_pieces(), _with_backward(config)
    vision_layers = sum(piece.startswith("vision.layers.") for piece in backward)
    stages = tuple(_stage(config, plan) for plan in plan_stages(model, config.parallel))
    length = config.data.sequence_length
    return Job(
        decoder=_decoder(config),
        tower=_tower(config),
        length=length,
        attended=length,
        rows=train.global_batch,
        micro_batch=train.rows_of_a_pass(),
        images=length // model.tile_positions() if images is None else images,
        share=Share(
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            virtual=layout.virtual,
            data=layout.data,
        ),
        stages=stages,
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
        block_scaled=train.fp8.recipe in ("blockwise", "mxfp8"),
        engine=Engine(
            name="vila_mc",
            turned=1 + model.language.facts().qk_norm,
            loss_bytes=4 if train.precision == "bf16" else 6,  # fused: probabilities in fp32
            sequence=config.parallel.sequence or layout.tensor == 1,
            overlap_gradients=config.parallel.overlap_grad_reduce,
        ),
    )


def _with_backward(config: RunConfig) -> frozenset[str]:
    return with_backward(config.learning_pieces() | config.adapted_pieces(), config.model)


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
    vision = config.model.vision
    shapes = [
        one for layer in config.model.connector_layers() for one in layer.parameters().values()
    ]
    matrices = [shape for shape in shapes if len(shape) > 1]
    return Tower(
        layers=vision.built_layers(),
        width=vision.width,
        heads=vision.heads,
        ffn=vision.ffn,
        positions=vision.positions(),
        kept_wide=3 if vision.facts().activation == "quick_gelu" else 2,
        connector=sum(map(prod, matrices)),
        visual_tokens=config.model.visual_tokens(),
    )


def _stage(config: RunConfig, plan: StagePlan) -> Stage:
    tensor = config.parallel.tensor
    learning, backward = config.learning_pieces(), _with_backward(config)
    weights = learnt = 0
    for parameter in stage_parameters(
        config.model, plan, config.lora, splits_connector=config.splits_connector()
    ):
        numbers = prod(parameter.local_shape(tensor))
        weights += numbers
        learns = is_adapter(parameter.name) or piece_of(parameter.name) in learning
        learnt += numbers * learns
    layers = [f"language.layers.{layer}" for layer in plan.layers]
    return Stage(
        layers=len(layers),
        has_vision=plan.has_vision,
        has_embedding=plan.has_embedding,
        has_head=plan.has_head,
        learning=sum(layer in learning for layer in layers),
        backward=sum(layer in backward for layer in layers),
        weights=weights,
        learnt=learnt,
    )
