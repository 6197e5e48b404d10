"""One phase of training: what is trained, on how much, kept where."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vila_mc.config.alarms import AlarmConfig
from vila_mc.config.checks import STRICT, require, require_positive
from vila_mc.config.fp8 import Fp8Config
from vila_mc.config.trainable import require_names

ModelPart = Literal["vision", "connector", "language"]
MODEL_PARTS: tuple[ModelPart, ...] = ("vision", "connector", "language")
Precision = Literal["fp32", "bf16", "fp16"]
LayerKind = Literal["torch", "transformer_engine"]
LayerChoice = Literal["auto", "torch", "transformer_engine"]
DEFAULT_STEPS = 100
DEFAULT_VALIDATE_EVERY = 100
_LONGEST_TIMEOUT_MINUTES = 10080


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One phase of training: align, pretrain or sft, the stages of VILA, section 3.1."""

    __pydantic_config__ = STRICT

    phase: Literal["align", "pretrain", "sft", "custom"] = "pretrain"
    """Name of the phase, for logs and manifests. What it trains is train.trainable."""
    trainable: tuple[str, ...] = ("connector", "language")
    """What learns: any of vision, connector, language, or less of them: vision.embedding,
    "vision.layers[-4:]" (a slice as in Python, in quotes), language.embedding,
    "language.layers[0:8]", language.norm, language.head. The rest is frozen, which suits weights
    that are loaded: by default the ViT, as in VILA. [] with lora.rank: adapters alone."""
    steps: int = DEFAULT_STEPS
    """Optimizer steps of the whole phase, if train.epochs does not say how many."""
    epochs: float | None = None
    """Passes through data.blend, instead of train.steps; the last step is filled up from the next
    pass. Of a recipe and the command line, the later one of the two counts."""
    global_batch: int = 1024
    """Rows per optimizer step, over all ranks: samples, or packs with data.packing. The default is
    that of VILA's pretrain at 7B."""
    micro_batch: int | None = None
    """Rows in one forward pass of one rank; the loss is the same for all (default: the most whose
    activations take about 256 MiB, which the run says)."""
    precision: Precision = "bf16"
    """Number format of weights and activations; the optimizer always keeps fp32. fp16 scales the
    loss, by as much as gradients bear."""
    fp8: Fp8Config = Fp8Config()
    """Matrix products in FP8."""
    layers: LayerChoice = "auto"
    """What transformer layers are made of: torch, or transformer_engine (its norms and linear
    layers). auto: Transformer Engine where it is installed and there is a GPU. Checkpoints are the
    same."""
    vision_layers: LayerChoice | None = None
    """The same for the vision tower alone; as train.layers if none."""
    recompute: Literal["none", "full"] = "none"
    """full: keep only layer inputs and recompute activations in the backward pass."""
    seed: int = 42
    """Decides the initial weights of a model that loads none."""
    init_std: float | None = 0.02
    """Standard deviation of weights of vision and language that are not loaded; the default suits
    models of 7B. none: by width, sqrt(2 / (5 x width)) of each and sqrt(2 / inputs) in the
    connector, which narrow models need to compare images."""
    output: Path = Path("checkpoints")
    """Directory of this phase's checkpoints and metrics."""
    load: Path | None = None
    """Checkpoint directory whose weights start this phase; its optimizer and position do not."""
    load_parts: tuple[ModelPart, ...] = MODEL_PARTS
    """Parts whose weights train.load gives: any of vision, connector, language. The others start
    from train.seed."""
    interpolate_positions: bool = False
    """Whether train.load may take a tower that was trained at another model.vision.image_size; its
    position embeddings are stretched to this one."""
    save_every: int = 500
    """Steps between checkpoints; one is always kept at the end and on Ctrl-C."""
    validate_every: int = DEFAULT_VALIDATE_EVERY
    """Steps between measurements of the loss on data.validation; one comes after the last step,
    too. 0 never measures it."""
    async_save: bool = True
    """Write checkpoints in the background; steps wait only while the state is copied."""
    save_memory_gib: float = 7.5
    """GiB of host memory in which each rank may keep what it writes in the background, from one
    checkpoint to the next. What does not fit is written while steps wait."""
    keep_last: int = 2
    """Newest checkpoints to keep; older ones are deleted."""
    keep_every: int | None = None
    """Keep for good the checkpoints after every multiple of this many steps."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest validation loss, too, which every save must have."""
    resume: bool = True
    """Go on from the newest checkpoint in train.output if there is one."""
    max_bad_steps: int = 3
    """Steps in a row whose loss or gradient is not finite that end the run. Such a step changes no
    weight; fewer are passed over."""
    trace_steps: tuple[int, ...] = ()
    """[10, 12]: write a trace of all ranks in steps 10 to 12 to train.output (ui.perfetto.dev)."""
    profile_steps: tuple[int, ...] = ()
    """The same by torch.profiler: every operation, a file per rank in train.output/profile."""
    alarms: AlarmConfig = AlarmConfig()
    """When a run says that something looks wrong."""
    check_replicas_every: int | None = None
    """Compare what ranks hold copies of, bit for bit, in every step whose number is a multiple of
    this, and before every save; a difference ends the run (default: never)."""
    deterministic: bool = False
    """Compute the same bits in every run on the same machines, also on GPUs, where it is slower."""
    timeout_minutes: float = 30.0
    """A collective that waits longer than this ends the run."""
    time_limit_minutes: float | None = None
    """When the command must be over, restarts included, counted from its start: it stops and saves
    before, with the exit code that schedulers put back into the queue. A job of SLURM is over when
    SLURM_JOB_END_TIME says so, if that is earlier."""
    time_margin_minutes: float = 5.0
    """How long before its limit a run stops: longer than a step and a save take."""
    tensorboard: bool = False
    """Write figures for TensorBoard to train.output/tensorboard, too; needs vila_mc[observe]."""
    wandb: str | None = None
    """Project of Weights & Biases to send the figures to; with WANDB_MODE=offline they stay in
    train.output/wandb. A run that goes on continues its own there. Needs vila_mc[observe]."""

    def __post_init__(self) -> None:
        require_positive(
            "train",
            steps=self.steps,
            global_batch=self.global_batch,
            micro_batch=self.rows_of_a_pass(),
            save_every=self.save_every,
            keep_last=self.keep_last,
            max_bad_steps=self.max_bad_steps,
            timeout_minutes=self.timeout_minutes,
        )
        require(
            self.timeout_minutes <= _LONGEST_TIMEOUT_MINUTES,
            f"train.timeout_minutes is {self.timeout_minutes:g}; it must be at most "
            f"{_LONGEST_TIMEOUT_MINUTES:,}, a week.",
        )
        if self.time_limit_minutes is not None:
            require_positive("train", time_limit_minutes=self.time_limit_minutes)
        require(
            0 <= self.time_margin_minutes < (self.time_limit_minutes or math.inf),
            f"train.time_margin_minutes is {self.time_margin_minutes:g} and "
            f"train.time_limit_minutes {self.time_limit_minutes or 'none'}. The margin must be 0 "
            "or more, and less than the limit.",
        )
        require(
            0 <= self.save_memory_gib < math.inf,
            f"train.save_memory_gib is {self.save_memory_gib}; it must be 0, which writes all of a "
            "checkpoint while steps wait, or greater.",
        )
        require(
            self.validate_every >= 0,
            f"train.validate_every is {self.validate_every}; it must be 0, which is never, or "
            "greater.",
        )
        if self.check_replicas_every is not None:
            require_positive("train", check_replicas_every=self.check_replicas_every)
        if self.init_std is not None:
            require_positive("train", init_std=self.init_std)
            require(self.init_std <= 1, f"train.init_std is {self.init_std}; it must be at most 1.")
        self._check_steps()
        self._check_numbers()
        self._check_parts()

    def _check_steps(self) -> None:
        """Refuse numbers of steps that do not go together. Raises ConfigError."""
        for name, steps in (("trace", self.trace_steps), ("profile", self.profile_steps)):
            require(
                not steps or (len(steps) == 2 and 1 <= steps[0] <= steps[1]),
                f"train.{name}_steps is {list(steps)}; it must be the first and the last step, "
                "counted from 1: [10, 12].",
            )
        require(
            self.epochs is None or 0 < self.epochs < math.inf,
            f"train.epochs is {self.epochs}; it must be greater than 0.",
        )
        require(
            self.epochs is None or self.steps == DEFAULT_STEPS,
            f"train.steps is {self.steps} and train.epochs {self.epochs}. Give one of them.",
        )
        require(
            self.keep_every is None
            or (self.keep_every > 0 and self.keep_every % self.save_every == 0),
            f"train.keep_every {self.keep_every} is not a multiple of train.save_every "
            f"{self.save_every}, so not all of its checkpoints would be written. Change one of "
            "them.",
        )

    def _check_numbers(self) -> None:
        """Refuse layers and FP8 that do not go together. Raises ConfigError."""
        require(
            self.fp8.recipe == "none" or self.precision == "bf16",
            f"train.fp8.recipe is {self.fp8.recipe} and train.precision {self.precision}; what is "
            "not computed in FP8 is in bf16. Set train.precision to bf16.",
        )
        for part, name in (("language", "layers"), ("vision", "vision_layers")):
            kind = self.layers if part == "language" else self.vision_layers or self.layers
            require(
                kind != "torch" or part not in self.fp8.parts or self.fp8.recipe == "none",
                f"train.fp8.recipe {self.fp8.recipe} needs layers of Transformer Engine for "
                f"{part}, and train.{name} is torch. Set it to auto.",
            )

    def _check_parts(self) -> None:
        """Refuse parts that are none, or named twice. Raises ConfigError."""
        require(
            len(self.load_parts) > 0,
            f"train.load_parts is empty; name at least one of {', '.join(MODEL_PARTS)}.",
        )
        for name, parts in (("trainable", self.trainable), ("load_parts", self.load_parts)):
            require(
                len(set(parts)) == len(parts),
                f"train.{name} names a part twice: {', '.join(parts)}.",
            )
        require_names(self.trainable)

    def check_load(self) -> None:
        """Refuse what is said of ``load`` and would change nothing.

        For those who start a run: a recipe may leave it to them to name what is loaded.

        Raises:
            ConfigError: there is no ``load``, or it gives no part that is spoken of.
        """
        said = {
            "load_parts": set(self.load_parts) != set(MODEL_PARTS),
            "interpolate_positions": self.interpolate_positions,
        }
        for name, is_said in said.items():
            require(
                self.load is not None or not is_said,
                f"train.{name} is set, but train.load is none, so nothing is loaded. Set "
                f"train.load, or leave train.{name} out.",
            )
        require(
            "vision" in self.load_parts or not self.interpolate_positions,
            "train.interpolate_positions stretches a vision tower, but train.load_parts "
            f"[{', '.join(self.load_parts)}] loads none. Add vision to it, or leave "
            "train.interpolate_positions out.",
        )

    def rows_of_a_pass(self) -> int:
        """``micro_batch``; 1 as long as it is neither given nor chosen."""
        return 1 if self.micro_batch is None else self.micro_batch

    def save_memory_bytes(self) -> int:
        """``save_memory_gib`` in bytes."""
        return int(self.save_memory_gib * 2**30)

    def microbatches(self, data_parallel: int) -> int:
        """Forward passes of one rank per optimizer step. Raises ConfigError for a fraction."""
        per_pass = self.rows_of_a_pass() * data_parallel
        require(
            self.global_batch % per_pass == 0,
            f"train.global_batch {self.global_batch} is not a multiple of train.micro_batch x "
            f"data-parallel size = {self.rows_of_a_pass()} x {data_parallel} = {per_pass}. Change "
            "train.global_batch or train.micro_batch.",
        )
        return self.global_batch // per_pass
