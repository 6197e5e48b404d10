"""The start of a run: data, output, the weights it begins with, and what it says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_mc.checkpoint.base import Base, base_of_run
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import DatasetRecord, TemplateRecord
from vila_mc.checkpoint.positions import stretching_line
from vila_mc.checkpoint.retention import checkpoint_bytes
from vila_mc.checkpoint.trained_template import another_template, recorded_template, template_of
from vila_mc.checkpoint.trained_tokenizer import another_tokenizer
from vila_mc.checkpoint.vocabulary import growth_line
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.loader import TrainingData
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import CheckpointError
from vila_mc.model.build import build_stages, count_weights
from vila_mc.model.megatron_config import DTYPES
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.agreement import require_same
from vila_mc.parallel.groups import Ranks
from vila_mc.topology.layout import Coordinates, Layout
from vila_mc.topology.stage_plan import plan_stages, stages_of_rank
from vila_mc.train.adapters import adapters_line, leaves_a_base
from vila_mc.train.announce import announce, warn
from vila_mc.train.learning import what_will_not_learn
from vila_mc.train.optimizer import jump_of_the_rate, rate_of
from vila_mc.train.own_output import OwnOutput
from vila_mc.train.passes import passes_line, seen_in_training, validation_line
from vila_mc.train.resume import (
    blend_since,
    changed_numbers,
    changed_settings,
    checkpoint_to_resume,
    loaded_parts,
    random_parts,
    unread_load,
)
from vila_mc.train.state import TrainState
from vila_mc.train.step import Trainer


def training_data(config: RunConfig, layout: Layout, at: Coordinates) -> TrainingData:
    """What the rank at ``at`` reads. Its worker processes are forked here and now.

    Raises:
        VilaError: the data cannot be used.
    """
    plans = plan_stages(config.model, config.parallel)
    mine = stages_of_rank(plans, at.pipeline, config.parallel.pipeline)
    return TrainingData(
        config.data,
        config.model,
        micro_batch=config.train.rows_of_a_pass(),
        global_batch=config.train.global_batch,
        data_rank=at.data,
        data_size=layout.data,
        needs_images=any(plan.needs_images() for plan in mine),
        microbatch_multiple=config.parallel.pipeline if config.parallel.virtual > 1 else 1,
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """What the checkpoints of a run say of where its weights come from."""

    datasets: tuple[DatasetRecord, ...]
    template: TemplateRecord | None = None
    """Of the weights it begins from."""
    base: Base | None = None
    """Of its adapters."""


@dataclass(frozen=True, slots=True)
class Started:
    """A run before its first step."""

    trainer: Trainer
    state: TrainState
    output: OwnOutput
    origin: Origin


def start(config: RunConfig, ranks: Ranks, data: TrainingData) -> Started:
    """Take the output, and begin from its newest checkpoint or from ``train.load``.

    Every rank must call this together.

    Raises:
        VilaError: checkpoint or output cannot be used.
    """
    stages = build_stages(config, ranks)
    output = _take_output(config, ranks, stages)
    datasets = tuple(DatasetRecord.of(reader.manifest) for reader in data.readers)
    warn(ranks, recorded_template(datasets)[1])
    for warning in what_will_not_learn(config, [reader.manifest for reader in data.readers]):
        warn(ranks, warning)
    if ranks.is_first():
        _warn_of_cut_samples(config, ranks, data)
        announce(ranks, passes_line(config, data.readers))
        announce(ranks, validation_line(config, data.validation_readers))
        warn(ranks, seen_in_training(data.readers, data.whole_readers()[len(data.readers) :]))
    trainer, state, origin = _restore_or_load(config, ranks, stages, datasets)
    if state.step == config.train.steps - 1 and not rate_of(config, config.train.steps):
        warn(
            ranks,
            "the one step left is the last of train.steps, whose learning rate is "
            "optimizer.min_lr 0: it changes no weight. Raise one of the two.",
        )
    return Started(trainer, state, output, origin)


def _take_output(config: RunConfig, ranks: Ranks, stages: Sequence[VilaModel]) -> OwnOutput:
    """Refuse to start where checkpoints have no room or another run writes."""
    train, layout = config.train, ranks.layout
    num_weights = count_weights(stages, ranks)
    num_trained = count_weights(stages, ranks, trained_only=True)
    num_tensors = sum(1 for stage in stages for _ in stage.parameters()) * layout.world_size()
    weight_bytes = DTYPES[train.precision].itemsize
    num_kept = num_trained if leaves_a_base(config) else num_weights
    one = checkpoint_bytes(num_kept, num_trained, num_tensors, weight_bytes)
    output = OwnOutput(train, ranks, one)
    learn = f", of which {num_trained:,} learn" if num_trained < num_weights else ""
    announce(ranks, f"{num_weights:,} weights{learn}, {layout}")
    return output


def _warn_of_cut_samples(config: RunConfig, ranks: Ranks, data: TrainingData) -> None:
    for reader, cut in zip(data.whole_readers(), data.cut_samples(), strict=True):
        if cut:
            warn(
                ranks,
                f"{cut:,} of {len(reader):,} samples of {reader.prefix} are longer than "
                f"data.sequence_length {config.data.sequence_length} and lose their end",
            )


def _restore_or_load(
    config: RunConfig,
    ranks: Ranks,
    stages: Sequence[VilaModel],
    datasets: tuple[DatasetRecord, ...],
) -> tuple[Trainer, TrainState, Origin]:
    """The newest checkpoint of ``train.output``, or else the weights of ``train.load``."""
    train = config.train
    earlier = checkpoint_to_resume(config)
    name = earlier.name if earlier is not None else "none"
    require_same({f"the newest checkpoint in {train.output}": name}, ranks.device)
    origin = Origin(datasets)
    if earlier is None:
        origin = _load(config, ranks, stages, datasets)
    trainer = Trainer(config, ranks, stages)
    if config.lora.parts():
        announce(ranks, adapters_line(trainer))
    if earlier is None:
        if not trainer.weights_are_finite():
            raise CheckpointError(
                f"train.load {train.load} holds a weight that is not finite. Use another."
            )
        return trainer, TrainState(step=0, samples_seen=0), origin
    manifest = trainer.resume(earlier)
    base = base_of_run(earlier, manifest, stages, train.output)
    announce(ranks, f"resuming after step {manifest.step} from {earlier}")
    warn(ranks, unread_load(manifest, config))
    is_same_blend = manifest.datasets == datasets
    template = manifest.template if is_same_blend else template_of(manifest)
    for change in changed_settings(manifest, config):
        announce(ranks, f"from here on: {change}")
    announce(ranks, changed_numbers(manifest, config))
    if 0 < manifest.step < train.steps:
        warn(ranks, jump_of_the_rate(manifest.config, config, manifest.step))
    if manifest.step == train.steps:
        announce(ranks, "all train.steps are done; nothing is left to train")
    since = blend_since(manifest, config)
    if since > manifest.blend_since:
        announce(ranks, f"from here on: data.blend from its beginning, after {since:,} samples")
    state = TrainState(manifest.step, manifest.samples_seen, since, manifest.bad_steps)
    return trainer, state, Origin(datasets, template, base)


def _load(
    config: RunConfig,
    ranks: Ranks,
    stages: Sequence[VilaModel],
    datasets: tuple[DatasetRecord, ...],
) -> Origin:
    """The weights of ``train.load``, and what to know about them."""
    train = config.train
    if made_up := random_parts(config):
        announce(ranks, made_up)
    if train.load is None:
        return Origin(datasets)
    directory = resolve_checkpoint(train.load)
    manifest = load_weights(directory, stages, train.load_parts)
    base = base_of_run(directory, manifest, stages, train.output)
    announce(ranks, loaded_parts(manifest, directory, config))
    announce(ranks, growth_line(manifest, config, train.load_parts))
    announce(ranks, stretching_line(manifest, config, train.load_parts))
    if "language" not in train.load_parts:
        return Origin(datasets, base=base)
    warn(ranks, another_template(manifest, datasets))
    if ranks.is_first() and config.data.tokenizer is not None:
        warn(ranks, another_tokenizer(manifest, Tokenizer(config.data.tokenizer)))
    return Origin(datasets, template_of(manifest), base)
