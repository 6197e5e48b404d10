"""The checkpoints that a run writes, one at a time and in the background."""

from pathlib import Path

from vila_mc.checkpoint.best import best_checkpoint
from vila_mc.checkpoint.disk import on_first_rank
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.config.run import RunConfig
from vila_mc.errors import TrainingError
from vila_mc.model.layer_specs import layer_kinds
from vila_mc.parallel.groups import Ranks
from vila_mc.parallel.installed import accelerator_versions
from vila_mc.train.announce import announce
from vila_mc.train.own_output import OwnOutput
from vila_mc.train.start import Origin
from vila_mc.train.state import TrainState
from vila_mc.train.step import Trainer


class Saves:
    """Writes the states of a run to its output. Every rank must call its methods together.

    Args:
        config: the whole configuration.
        ranks: this rank and its groups.
        trainer: what is saved.
        output: where.
        origin: where its weights come from.
    """

    def __init__(
        self, config: RunConfig, ranks: Ranks, trainer: Trainer, output: OwnOutput, origin: Origin
    ) -> None:
        self.config, self.ranks, self.trainer = config, ranks, trainer
        self.output, self.origin = output, origin
        self.pending: PendingSave | None = None

    def is_due(self, state: TrainState) -> bool:
        """Whether ``train.save_every`` asks for a checkpoint of this state."""
        train = self.config.train
        return state.step % train.save_every == 0 or state.step == train.steps

    def save(self, state: TrainState, validation_loss: float | None = None) -> None:
        """Start to write the state of now; without ``train.async_save``, also finish.

        Args:
            state: where the run stands.
            validation_loss: of this step; None where it was not measured.

        Raises:
            TrainingError: on every rank, and nothing was written: a weight is not finite, or
                copies of one differ.
            SetupError: on every rank; the disk is full, or another directory is in its place.
        """
        self.finish(wait=True)  # the one before
        if not self.trainer.weights_are_finite():
            raise TrainingError(
                f"a weight is not finite after step {state.step}, so nothing was saved; "
                "earlier checkpoints are untouched. Lower optimizer.lr."
            )
        self.trainer.copies.require_equal(f"after step {state.step}")
        manifest = Manifest(
            step=state.step,
            samples_seen=state.samples_seen,
            blend_since=state.blend_since,
            bad_steps=state.bad_steps,
            config=self.config,
            layout=self.ranks.layout,
            versions=versions() | accelerator_versions(),
            layers=layer_kinds(self.config),
            datasets=self.origin.datasets,
            template=self.origin.template,
            validation_loss=validation_loss,
        )
        in_background, directory = self.config.train.async_save, self.config.train.output
        on_first_rank(self.ranks, self.output.require_in_place, directory)
        self.pending = PendingSave(
            manifest,
            self.ranks,
            self.trainer.stages,
            self.trainer.optimizer,
            base=self.origin.base,
            in_background=in_background,
        )
        self.finish(wait=not in_background)

    def finish(self, *, wait: bool) -> None:
        """Make a checkpoint visible whose shards are written; ``wait`` for them if need be.

        Raises:
            SetupError: on every rank; it could not be written.
        """
        if self.pending is not None and (wait or self.pending.is_written()):
            pending, self.pending = self.pending, None
            saved = pending.finish()
            announce(self.ranks, f"saved {saved}{self._how_good(saved)}")

    def _how_good(self, saved: Path) -> str:
        """What to say of a checkpoint where the best is kept."""
        if not self.config.train.keep_best or not self.ranks.is_first():
            return ""
        best = best_checkpoint(saved.parent)
        return (
            "" if best is None else f", the best so far is {'this' if best == saved else best.name}"
        )

    def close(self) -> None:
        """Give up an unfinished save, and the output."""
        if self.pending is not None:
            self.pending.abandon()
        self.output.release()
