"""``vila-mc convert``: between training checkpoints of any layout and Hugging Face formats.

Needs neither a GPU nor torchrun. Models larger than memory are converted tensor by tensor.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from vila_mc.commands.command import Job, refuse_unused, run_one_of
from vila_mc.config.connectors import TokenOrder
from vila_mc.config.families import ImageMode
from vila_mc.config.load import connector_from_text
from vila_mc.config.options import Argument
from vila_mc.convert.formats.registry import FormatName
from vila_mc.errors import ConfigError, run_cli, say
from vila_mc.files import write_json

if TYPE_CHECKING:
    from vila_mc.convert.formats.format import ForeignModel, Format

Dtype = Literal["fp32", "bf16"]
_QUESTION = "Describe this image."
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Published weights -> a checkpoint that training starts from."""

    model: Annotated[Path | None, Argument("DIR")] = None
    """A whole model: our export, LLaVA-1.5, or a VILA directory (default: --llm and --vision)."""
    llm: Annotated[Path | None, Argument("DIR")] = None
    """A Llama, Vicuna, Mistral, Qwen2 or Qwen3, to go with --vision (default: --model)."""
    vision: Annotated[Path | None, Argument("DIR")] = None
    """A CLIP or SigLIP, whole or its vision part, to go with --llm (default: --model)."""
    connector: Annotated[str | None, Argument("KIND")] = None
    """New, between --llm and --vision: a kind of model.connector, or one with its options, as in
    '{kind: mlpNx_gelu, layers: 3}' (default: mlp_downsample)."""
    token_order: TokenOrder | None = None
    """How the visual tokens of a VILA directory's connector follow each other, which no file says
    (default: columns where it is of before 2024-12-12, else rows)."""
    tokenizer: Annotated[Path | None, Argument("DIR")] = None
    """The model's tokenizer with more tokens, for which the vocabulary grows (default: the one
    beside the model)."""
    adapters: Annotated[Path | None, Argument("DIR")] = None
    """Adapters in PEFT's format, to go with --base alone (default: a model is imported)."""
    base: Annotated[Path | None, Argument("DIR")] = None
    """The checkpoint that --adapters were trained beside, imported before."""
    output: Annotated[Path, Argument("DIR")]
    """Directory to write, new or empty."""
    image_mode: ImageMode | None = None
    """How an image becomes square (default: as the source says)."""
    select_layer: int | None = None
    """Layer of --vision that features come from, counted from the end; those above it are not
    imported (default: -2, the last but one; of --model as it says)."""
    image_size: int | None = None
    """Side of the images in pixels; the position embeddings of --vision are interpolated (default:
    that of --vision)."""
    dtype: Dtype | None = None
    """Number format of the weights (default: what loses nothing)."""
    seed: int = 42
    """Decides the weights of a new connector."""
    trust_pickle: bool = False
    """Read .bin weights where there are no safetensors; tensors only, nothing is run."""
    no_verify: bool = False
    """Write only; compare nothing with the source."""
    streamed: bool = False
    """Read weights as they are used in the comparison (default: when they do not fit)."""


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """How an export is compared with its checkpoint."""

    checkpoint: Annotated[Path, Argument("DIR")]
    """What is exported: a step-* directory, or a run, of which the newest checkpoint is taken."""
    tokenizer: Annotated[Path | None, Argument("MODEL")] = None
    """Default: the one it was trained with."""
    question: Annotated[str | None, Argument("TEXT")] = None
    """Asked in the proof of hf-vila (default: Describe this image.)."""
    image: Annotated[tuple[Path, ...], Argument("FILE")] = ()
    """Asked about in the proof of hf-vila (default: no image)."""
    result: Annotated[Path | None, Argument("FILE")] = None
    """JSON file for the figures of the proof (default: none)."""
    streamed: bool = False
    """Read weights as they are used in the proof (default: when they do not fit)."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ProofOptions):
    """A checkpoint -> a directory for others, reloaded in a fresh process and compared."""

    output: Annotated[Path, Argument("DIR")]
    """Directory to write."""
    format: FormatName = "hf-vila"
    """hf-vila: every connector, trust_remote_code. hf-llava: transformers' own LLaVA, for linear
    and mlp2x_gelu. vila: the public code's directories. llm: the language model alone."""
    dtype: Dtype | None = None
    """Number format of the weights (default: as it was trained)."""
    shard_size: Annotated[str, Argument("SIZE")] = "5GB"
    """Most in one weight file."""
    no_verify: bool = False
    """Write only; prove nothing."""
    merge_lora: bool = False
    """Merge LoRA adapters into the weights, which is the default where there are any."""
    adapters: bool = False
    """Write LoRA adapters alone, in PEFT's format, beside an export of what they were trained
    beside (hf-vila and llm). Their proof needs peft."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ProofOptions):
    """Compare an export with its checkpoint again."""

    export: Annotated[Path, Argument("DIR")]
    """What was written."""
    trust_code: bool = False
    """Run modelling files in it that this version of vila_mc did not write."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Say what a checkpoint is."""

    path: Annotated[Path, Argument("DIR", is_positional=True)]
    """A checkpoint of ours or of Hugging Face."""
    trust_pickle: bool = False
    """Look into .bin weights."""


@dataclass(frozen=True, kw_only=True)
class RelinkOptions:
    """Say where the base of LoRA adapters is, after it was moved."""

    checkpoint: Annotated[Path, Argument("DIR")]
    """Checkpoints of adapters: a run, or one step-* directory of it."""
    base: Annotated[Path, Argument("DIR")]
    """Where the checkpoint that they were trained beside is now, or the directory it is in."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and call. Raises VilaError."""
    # On the CPU, where transformers is compared too: a GPU's TF32 would differ in the fourth digit.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return run_one_of(
        {
            "import": Job(ImportOptions, import_command),
            "export": Job(ExportOptions, export_command),
            "verify": Job(VerifyOptions, verify_command),
            "inspect": Job(InspectOptions, inspect_command),
            "relink": Job(RelinkOptions, relink_command),
        },
        "command",
        arguments,
        prog,
        summary="Convert between training checkpoints of any layout and Hugging Face formats.",
    )


def import_command(options: ImportOptions) -> int:
    """Write a checkpoint of step 0. Raises VilaError."""
    from vila_mc.convert.import_checkpoint import import_checkpoint
    from vila_mc.convert.import_directory import RECIPE_NAME
    from vila_mc.convert.proof.compare_source import compare_source

    if options.adapters is not None or options.base is not None:
        from vila_mc.commands.convert_adapters import import_adapters_of

        return import_adapters_of(options)
    source = _source_of(options)
    path = import_checkpoint(source, options.output, options.dtype)
    recipe = options.output / RECIPE_NAME
    say(f"read {source.kind}: {len(source.tensors)} tensors\nwrote {path}")
    if options.no_verify:
        print("not verified: run without --no-verify before relying on it")
    else:
        proof = compare_source(
            source,
            options.output,
            is_image_mode_given=options.image_mode is not None,
            is_streamed=options.streamed or None,
        )
        for text in proof.proven:
            say(f"verified against the source in a fresh process: {text}")
        for text in proof.unproven:
            say(f"NOT verified: {text}")
    say(f"train from it with --config {recipe} --train.load {options.output}")
    return 0


def _source_of(options: ImportOptions) -> "ForeignModel":
    """What is imported: a whole model, or the parts of a new one. Raises VilaError."""
    from vila_mc.convert.combine_parts import combine_parts
    from vila_mc.convert.families.vision import DEFAULT_LAYER
    from vila_mc.convert.formats.whole_directory import read_whole
    from vila_mc.convert.grow_vocabulary import with_tokenizer

    trust, mode = options.trust_pickle, options.image_mode
    llm, vision = options.llm, options.vision
    select_layer = DEFAULT_LAYER if options.select_layer is None else options.select_layer
    if select_layer >= 0:
        raise ConfigError(
            f"--select-layer is {select_layer}; it counts from the end: -1 is the last layer, -2 "
            "the last but one."
        )
    if options.model is not None and llm is None and vision is None:
        refuse_unused(options, ("connector",), "--model brings its own")
        refuse_unused(options, ("select_layer",), "--model says it itself")
        reason = "only --vision is stretched; train.interpolate_positions is for what is imported"
        refuse_unused(options, ("image_size",), reason)
        order = options.token_order
        source = read_whole(options.model, mode, token_order=order, trust_pickle=trust)
    elif options.model is None and llm is not None and vision is not None:
        refuse_unused(options, ("token_order",), "a new connector has no order yet")
        source = combine_parts(
            llm,
            vision,
            connector_from_text(options.connector or "mlp_downsample"),
            mode,
            select_layer=select_layer,
            image_size=options.image_size,
            seed=options.seed,
            trust_pickle=trust,
        )
    else:
        raise ConfigError("give either --model, or both --llm and --vision.")
    if options.tokenizer is not None:
        source = with_tokenizer(source, options.tokenizer)
    return source


def export_command(options: ExportOptions) -> int:
    """Write an export and prove it. Raises VilaError."""
    if options.adapters:
        from vila_mc.commands.convert_adapters import export_adapters_of

        return export_adapters_of(options)
    from vila_mc.convert.export_checkpoint import export_checkpoint
    from vila_mc.convert.formats.registry import find_format
    from vila_mc.convert.proof.fresh_request import require_installed
    from vila_mc.model.megatron_config import DTYPES

    if options.no_verify:
        refuse_unused(options, ("question", "image", "result"), "--no-verify leaves out the proof")
    else:
        _require_askable(options, find_format(options.format))
        require_installed("transformers")
    export_checkpoint(
        options.checkpoint,
        options.output,
        options.format,
        tokenizer=options.tokenizer,
        dtype=None if options.dtype is None else DTYPES[options.dtype],
        max_shard_bytes=_num_bytes(options.shard_size),
        needs_adapters=options.merge_lora,
    )
    say(f"wrote {options.output}")
    if options.no_verify:
        print("not verified: run without --no-verify before relying on it")
        return 0
    return _prove(options, options.output)


def verify_command(options: VerifyOptions) -> int:
    """Prove an export that is there. Raises VilaError."""
    from vila_mc.convert.formats.write_export import written_format

    _require_askable(options, written_format(options.export))
    return _prove(options, options.export, trusts_code=options.trust_code)


def inspect_command(options: InspectOptions) -> int:
    """Print what a checkpoint is. Raises VilaError."""
    from vila_mc.convert.describe import describe

    for label, text in describe(options.path, trust_pickle=options.trust_pickle):
        say(f"{label:<18} {text}")
    return 0


def relink_command(options: RelinkOptions) -> int:
    """Write into checkpoints of adapters where their base is. Raises VilaError."""
    from vila_mc.checkpoint.base_place import relink

    adapters, base = relink(options.checkpoint, options.base)
    for path in adapters:
        say(f"{path} stands beside {base}")
    return 0


def _require_askable(options: ProofOptions, format: "Format") -> None:
    """Refuse a question that the proof of this format would not put. Raises ConfigError."""
    if not format.has_own_code:
        refuse_unused(
            options,
            ("question", "image"),
            f"the proof of {format.name} compares logits and tokens alone, as its processor is "
            "not ours",
        )


def _prove(options: ProofOptions, export: Path, *, trusts_code: bool = False) -> int:
    from vila_mc.convert.export_checkpoint import Question, prove_export

    question = options.question or _QUESTION
    proof = prove_export(
        options.checkpoint,
        export,
        Question(question, options.image),
        options.tokenizer,
        is_streamed=options.streamed or None,
        trusts_code=trusts_code,
    )
    result = proof.result
    tokens = "read weight by weight" if proof.is_streamed else "greedy tokens equal"
    say(
        f"verified in a fresh process: greatest logit difference {result.max_difference:.2e}, "
        f"mean {result.mean_difference:.2e}, {tokens}"
    )
    if result.answers:
        say(f"the reloaded model, asked {question!r}: {result.answers[0]!r}")
    if options.result:
        write_json(
            options.result,
            {
                "max_logit_difference": result.max_difference,
                "mean_logit_difference": result.mean_difference,
                "greedy_answers_equal": None if proof.is_streamed else result.greedy_equal,
                "answers": list(result.answers),
            },
        )
    return 0


def _num_bytes(text: str) -> int:
    """``500MB`` -> 500,000,000. Raises ConfigError."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB)", text)
    if match is None or int(match[1]) == 0:
        raise ConfigError(
            f"--shard-size is {text}; give a number and a unit, such as 5GB or 500MB."
        )
    return int(match[1]) * _UNITS[match[2]]


if __name__ == "__main__":
    run_cli(main)
