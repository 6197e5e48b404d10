"""A run from start or resume to its last step."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vila_mc.checkpoint.base import Base, base_of_run
from vila_mc.checkpoint.disk import on_first_rank
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import (
    DatasetRecord,
    Manifest,
    TemplateRecord,
    resolve_checkpoint,
    versions,
)
from vila_mc.checkpoint.positions import stretching_line
from vila_mc.checkpoint.retention import checkpoint_bytes
from vila_mc.checkpoint.save import PendingSave
from vila_mc.checkpoint.trained_template import another_template, recorded_template, template_of
from vila_mc.checkpoint.trained_tokenizer import another_tokenizer
from vila_mc.checkpoint.vocabulary import growth_line
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.loader import StepData, TrainingData
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import CheckpointError, TrainingError, say
from vila_mc.flow import Microbatch, StepResult
from vila_mc.model.build import build_stages, count_weights
from vila_mc.model.layer_specs import layer_kinds
from vila_mc.model.megatron_config import DTYPES
from vila_mc.model.vila_model import VilaModel
from vila_mc.observe.record import StepRecord
from vila_mc.observe.sinks import Sink, open_sinks
from vila_mc.parallel.agreement import require_same
from vila_mc.parallel.groups import Ranks
from vila_mc.parallel.installed import accelerator_versions
from vila_mc.topology.layout import Coordinates, Layout
from vila_mc.topology.stage_plan import plan_stages, stages_of_rank
from vila_mc.train.adapters import adapters_line, leaves_a_base
from vila_mc.train.faults import StopRequest
from vila_mc.train.learning import need_images, what_will_not_learn
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
from vila_mc.train.step import Trainer
from vila_mc.train.validation import validate

_STEPS_WITHOUT_IMAGES = 100
"""In a row, after which it is said that some parts learn nothing."""
_MOST_NAMED = 8
"""Samples in one line."""


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run stands. With the weights and the optimizer it is all there is to resume."""

    step: int
    samples_seen: int
    blend_since: int = 0
    """Where in ``samples_seen`` the order of the data begins."""
    bad_steps: int = 0
    """Steps in a row up to this one that changed nothing."""

    def position(self) -> int:
        """Samples read in the order of now."""
        return self.samples_seen - self.blend_since


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


class TrainingLoop:
    """Everything one rank needs to train one phase.

    Args:
        config: the whole configuration.
        ranks: this rank and its groups.
        data: what this rank reads.
        stop: becomes true when the user or the cluster wants the run to end.

    Raises:
        VilaError: checkpoint or output cannot be used; before any step.
    """

    def __init__(
        self, config: RunConfig, ranks: Ranks, data: TrainingData, stop: StopRequest
    ) -> None:
        self.config, self.ranks, self.data, self.stop = config, ranks, data, stop
        stages = build_stages(config, ranks)
        self.output = self._take_output(stages)
        self.datasets = tuple(DatasetRecord.of(reader.manifest) for reader in data.readers)
        self.template: TemplateRecord | None = None  # of the weights it begins from
        self._warn(recorded_template(self.datasets)[1])
        for warning in what_will_not_learn(config, [reader.manifest for reader in data.readers]):
            self._say(f"warning: {warning}")
        if ranks.is_first():
            self._warn_of_cut_samples()
            self._say(passes_line(config, data.readers))
            self._say(validation_line(config, data.validation_readers))
            self._warn(seen_in_training(data.readers, data.validation_readers))
        self.saving: PendingSave | None = None
        self.base: Base | None = None  # of its adapters
        self.steps_without_images = 0
        self.trainer, self.state = self._restore_or_start(stages)
        if self.state.step == config.train.steps - 1 and not rate_of(config, config.train.steps):
            self._say(
                "warning: the one step left is the last of train.steps, whose learning rate is "
                "optimizer.min_lr 0: it changes no weight. Raise one of the two."
            )
        self.sinks: list[Sink] = []
        if ranks.is_first():
            self.sinks = open_sinks(config, self.state.step)

    def fit(self) -> TrainState:
        """Train to the last step, or until asked to stop; the last state is always saved.

        Raises:
            TrainingError: on every rank; too many steps in a row had no finite loss or gradient, a
                weight is not finite, or no token is trained.
            DataError: an image no longer decodes, and data.on_bad_image is stop.
            SetupError: a checkpoint cannot be written, or a worker process died.
        """
        batches = self.data.iterate(self.state.position())
        try:
            while self.state.step < self.config.train.steps:
                result = self._train_step(batches)
                self._finish_saving(wait=False)
                should_stop = result.should_stop
                if self._is_validation_due():
                    should_stop |= self._validate()
                if should_stop or self._is_save_due():
                    self._save()
                if should_stop:
                    break
        except TrainingError:  # on every rank; what was good before it is kept
            self._finish_saving(wait=True)
            raise
        self._finish_saving(wait=True)
        return self.state

    def close(self) -> None:
        """Close the sinks, give up an unfinished save and the output."""
        for sink in self.sinks:
            sink.close()
        if self.saving is not None:
            self.saving.abandon()
        self.output.release()

    def _train_step(self, steps: Iterator[StepData]) -> StepResult:
        started = time.monotonic()
        data = next(steps)
        result = self.trainer.step(data.microbatches, should_stop=self.stop.was_made)
        seconds = time.monotonic() - started
        before, bad_steps = self.state, self.state.bad_steps + 1 if result.skipped else 0
        if result.overflowed:  # as many as it takes: the loss scale falls with each
            bad_steps = self.state.bad_steps
        seen = before.blend_since + data.samples_seen
        self.state = TrainState(before.step + 1, seen, before.blend_since, bad_steps)
        if self.ranks.at.tensor == 0:
            _warn_of_substitutes(data.microbatches)
        record = StepRecord(
            step=self.state.step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            skipped=result.skipped,
            learning_rate=result.learning_rate,
            trained_tokens=result.trained_tokens,
            images=result.num_images,
            samples=result.num_samples,
            filled=round(result.filled, 4),
            substitutes=result.substitutes,
            loss_by_entry=list(result.loss_by_entry),
            step_ms=round(1000 * seconds, 3),
        )
        for sink in self.sinks:
            sink.write(record)
        self.steps_without_images = 0 if result.num_images else self.steps_without_images + 1
        if self.steps_without_images % _STEPS_WITHOUT_IMAGES == 0 and not result.num_images:
            self._warn_of_no_images()
        if result.overflowed:
            self._say(f"step {self.state.step} overflowed in fp16: the loss is scaled by less")
        elif result.skipped:
            self._pass_over(before, result)
        return result

    def _is_validation_due(self) -> bool:
        train, step = self.config.train, self.state.step
        is_due = self.config.validates() and step % train.validate_every == 0
        return is_due or (self.config.validates() and step == train.steps)

    def _validate(self) -> bool:
        """Before a save: what a checkpoint has behind it has been measured.

        Returns:
            whether some rank was asked to stop meanwhile.
        """
        num_entries, step = len(self.config.data.validation), self.state.step
        passes = self.data.validation()
        record, should_stop = validate(self.trainer, passes, num_entries, step, self.stop)
        for sink in self.sinks:
            sink.write_validation(record)
        return should_stop

    def _warn_of_no_images(self) -> None:
        if idle := need_images(self.config):
            self._say(
                f"warning: {', '.join(idle)} had no gradient in the last "
                f"{self.steps_without_images:,} steps, which had no images"
            )

    def _pass_over(self, before: TrainState, result: StepResult) -> None:
        """Say which step changed nothing and which samples it had; end the run if they go on."""
        train, bad_steps = self.config.train, self.state.bad_steps
        names = self.data.names(before.position())
        suspects = [name for index in result.bad_microbatches for name in names[index]]
        if suspects and self.ranks.at.tensor == 0:
            say(f"warning: no finite loss from {_listed(suspects)}", to_stderr=True)
        what = f"loss {result.loss:g}, gradient norm {result.grad_norm:g}"
        if self.ranks.is_first():
            say(
                f"warning: step {self.state.step} changed no weight: {what} ({bad_steps} in a row; "
                f"train.max_bad_steps is {train.max_bad_steps}). It read samples "
                f"{before.samples_seen:,} to {self.state.samples_seen - 1:,} of the run, such as "
                f"{_listed([name for each in names for name in each])}",
                to_stderr=True,
            )
        if bad_steps >= train.max_bad_steps:
            raise TrainingError(
                f"{bad_steps} steps in a row up to step {self.state.step} had no finite loss or "
                f"gradient ({what}) and changed no weight. Lower optimizer.lr, look at the samples "
                "named above, or go on from an earlier checkpoint; train.max_bad_steps says how "
                "many are passed over."
            )

    def _restore_or_start(self, stages: Sequence[VilaModel]) -> tuple[Trainer, TrainState]:
        """The newest checkpoint of ``train.output``, or else the weights of ``train.load``."""
        train = self.config.train
        earlier = checkpoint_to_resume(self.config)
        name = earlier.name if earlier is not None else "none"
        require_same({f"the newest checkpoint in {train.output}": name}, self.ranks.device)
        if earlier is None:
            self._load(stages)
        trainer = Trainer(self.config, self.ranks, stages)
        if self.config.lora.parts():
            self._say(adapters_line(trainer))
        if earlier is None:
            if not trainer.weights_are_finite():
                raise CheckpointError(
                    f"train.load {train.load} holds a weight that is not finite. Use another."
                )
            return trainer, TrainState(step=0, samples_seen=0)
        manifest = trainer.resume(earlier)
        self.base = base_of_run(earlier, manifest, stages, train.output)
        self._say(f"resuming after step {manifest.step} from {earlier}")
        self._warn(unread_load(manifest, self.config))
        is_same_blend = manifest.datasets == self.datasets
        self.template = manifest.template if is_same_blend else template_of(manifest)
        for change in changed_settings(manifest, self.config):
            self._say(f"from here on: {change}")
        self._say(changed_numbers(manifest, self.config))
        if 0 < manifest.step < train.steps:
            self._warn(jump_of_the_rate(manifest.config, self.config, manifest.step))
        if manifest.step == train.steps:
            self._say("all train.steps are done; nothing is left to train")
        since = blend_since(manifest, self.config)
        if since > manifest.blend_since:
            self._say(f"from here on: data.blend from its beginning, after {since:,} samples")
        state = TrainState(manifest.step, manifest.samples_seen, since, manifest.bad_steps)
        return trainer, state

    def _load(self, stages: Sequence[VilaModel]) -> None:
        """The weights of ``train.load``, and what to know about them."""
        config = self.config
        if made_up := random_parts(config):
            self._say(made_up)
        if config.train.load is None:
            return
        directory = resolve_checkpoint(config.train.load)
        manifest = load_weights(directory, stages, config.train.load_parts)
        self.base = base_of_run(directory, manifest, stages, config.train.output)
        self._say(loaded_parts(manifest, directory, config))
        self._say(growth_line(manifest, config, config.train.load_parts))
        self._say(stretching_line(manifest, config, config.train.load_parts))
        knows_words = "language" in config.train.load_parts
        if knows_words:
            self.template = template_of(manifest)
            self._warn(another_template(manifest, self.datasets))
        if self.ranks.is_first() and knows_words and config.data.tokenizer is not None:
            self._warn(another_tokenizer(manifest, Tokenizer(config.data.tokenizer)))

    def _warn(self, what: str | None) -> None:
        if what:
            self._say(f"warning: {what}")

    def _take_output(self, stages: Sequence[VilaModel]) -> OwnOutput:
        """Refuse to start where checkpoints have no room or another run writes."""
        train, layout = self.config.train, self.ranks.layout
        num_weights = count_weights(stages, self.ranks)
        num_trained = count_weights(stages, self.ranks, trained_only=True)
        num_tensors = sum(1 for stage in stages for _ in stage.parameters()) * layout.world_size()
        weight_bytes = DTYPES[train.precision].itemsize
        num_kept = num_trained if leaves_a_base(self.config) else num_weights
        one = checkpoint_bytes(num_kept, num_trained, num_tensors, weight_bytes)
        output = OwnOutput(train, self.ranks, one)
        learn = f", of which {num_trained:,} learn" if num_trained < num_weights else ""
        self._say(f"{num_weights:,} weights{learn}, {layout}")
        return output

    def _warn_of_cut_samples(self) -> None:
        readers = (*self.data.readers, *self.data.validation_readers)
        for reader, cut in zip(readers, self.data.cut_samples(), strict=True):
            if cut:
                self._say(
                    f"warning: {cut:,} of {len(reader):,} samples of {reader.prefix} are longer "
                    f"than data.sequence_length {self.config.data.sequence_length} and lose their "
                    "end"
                )

    def _is_save_due(self) -> bool:
        step = self.state.step
        return step % self.config.train.save_every == 0 or step == self.config.train.steps

    def _save(self) -> None:
        """Start to write the state of now; without train.async_save, also finish."""
        self._finish_saving(wait=True)  # the one before
        if not self.trainer.weights_are_finite():
            raise TrainingError(
                f"a weight is not finite after step {self.state.step}, so nothing was saved; "
                "earlier checkpoints are untouched. Lower optimizer.lr."
            )
        manifest = Manifest(
            step=self.state.step,
            samples_seen=self.state.samples_seen,
            blend_since=self.state.blend_since,
            bad_steps=self.state.bad_steps,
            config=self.config,
            layout=self.ranks.layout,
            versions=versions() | accelerator_versions(),
            layers=layer_kinds(self.config),
            datasets=self.datasets,
            template=self.template,
        )
        in_background, output = self.config.train.async_save, self.config.train.output
        on_first_rank(self.ranks, self.output.require_in_place, output)
        self.saving = PendingSave(
            manifest,
            self.ranks,
            self.trainer.stages,
            self.trainer.optimizer,
            base=self.base,
            in_background=in_background,
        )
        self._finish_saving(wait=not in_background)

    def _finish_saving(self, *, wait: bool) -> None:
        """Make a checkpoint visible whose shards are written; ``wait`` for them if need be."""
        if self.saving is not None and (wait or self.saving.is_written()):
            saving, self.saving = self.saving, None
            self._say(f"saved {saving.finish()}")

    def _say(self, line: str) -> None:
        if line and self.ranks.is_first():
            say(line)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _warn_of_substitutes(microbatches: Sequence[Microbatch]) -> None:
    """Say which images were replaced; only the ranks that decode images know."""
    for batch in microbatches:
        for message in batch.substitutes:
            say(f"warning: {message} Its mean colour stands in for it.", to_stderr=True)
