"""Convert between training checkpoints of any layout and Hugging Face formats, and prove it.

    import    published weights -> a checkpoint that training starts from
    export    a checkpoint -> a directory for others, reloaded in a fresh process and compared
    verify    compare an export with its checkpoint again
    inspect   say what a checkpoint is

Needs neither a GPU nor torchrun. Models larger than memory are converted tensor by tensor.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any, get_args

from vila_mc.config.families import ImageMode
from vila_mc.config.load import ErrorRaisingParser
from vila_mc.config.model import ConnectorKind
from vila_mc.convert.formats.registry import FORMATS
from vila_mc.errors import ConfigError, run_cli
from vila_mc.files import write_json

QUESTION = "Describe this image."
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def main() -> int:
    summary, _, commands_help = (__doc__ or "").partition("\n\n")
    parser = ErrorRaisingParser(
        description=summary,
        epilog=commands_help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_import(commands.add_parser("import", help="published weights -> a training checkpoint"))
    _add_export(commands.add_parser("export", help="a checkpoint -> Hugging Face, and prove it"))
    _add_verify(commands.add_parser("verify", help="compare an export with its checkpoint"))
    _add_inspect(commands.add_parser("inspect", help="say what a checkpoint is"))
    arguments = parser.parse_args()
    # On the CPU, where transformers is compared too: a GPU's TF32 would differ in the fourth digit.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    run: Any = arguments.run
    return int(run(arguments))


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=import_command)
    parser.add_argument(
        "--model", type=Path, help="a whole model: our export, LLaVA-1.5, or a VILA directory"
    )
    parser.add_argument("--llm", type=Path, help="a Llama, Vicuna, Mistral or Qwen2")
    parser.add_argument("--vision", type=Path, help="a CLIP or SigLIP, whole or its vision part")
    parser.add_argument(
        "--connector",
        choices=get_args(ConnectorKind),
        default="mlp_downsample",
        help="new, between --llm and --vision (mlp_downsample)",
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--image-mode", choices=get_args(ImageMode), help="default: as the source says"
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="default: what loses nothing")
    parser.add_argument("--seed", type=int, default=42, help="of a new connector (42)")
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read .bin weights where there are no safetensors; tensors only, nothing is run",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=export_command)
    parser.add_argument("--checkpoint", type=Path, required=True, help="step-* directory or run")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="hf-vila",
        help="hf-vila: every connector, trust_remote_code (default). hf-llava: transformers' own "
        "LLaVA, for linear and mlp2x_gelu. vila: the public code's directories. llm: the language "
        "model alone",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="default: as it was trained")
    parser.add_argument("--shard-size", default="5GB", help="most in one weight file (5GB)")
    parser.add_argument("--no-verify", action="store_true", help="write only; prove nothing")
    _add_proof(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=verify_command)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what was exported")
    parser.add_argument("--export", type=Path, required=True, help="what was written")
    _add_proof(parser)


def _add_proof(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", type=Path, help="default: the one it was trained with")
    parser.add_argument("--question", default=QUESTION, help=f"asked in the proof ({QUESTION})")
    parser.add_argument("--image", type=Path, action="append", default=[], help="asked about")
    parser.add_argument("--result", type=Path, help="JSON file for the figures of the proof")
    parser.add_argument(
        "--streamed",
        action="store_const",
        const=True,
        help="read weights as they are used in the proof (default: when they do not fit)",
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=inspect_command)
    parser.add_argument("path", type=Path, help="a checkpoint of ours or of Hugging Face")
    parser.add_argument("--trust-pickle", action="store_true", help="look into .bin weights")


def import_command(arguments: argparse.Namespace) -> int:
    """Write a checkpoint of step 0."""
    from vila_mc.convert.combine_parts import combine_parts
    from vila_mc.convert.formats.whole_directory import read_whole
    from vila_mc.convert.import_checkpoint import RECIPE_NAME, import_checkpoint

    trust, mode = arguments.trust_pickle, arguments.image_mode
    is_pair = arguments.llm is not None and arguments.vision is not None
    if (arguments.model is not None) == is_pair or (
        not is_pair and (arguments.llm or arguments.vision)
    ):
        raise ConfigError("give either --model, or both --llm and --vision.")
    if is_pair:
        source = combine_parts(
            arguments.llm,
            arguments.vision,
            arguments.connector,
            mode,
            seed=arguments.seed,
            trust_pickle=trust,
        )
    else:
        source = read_whole(arguments.model, mode, trust_pickle=trust)
    path = import_checkpoint(source, arguments.output, arguments.dtype)
    recipe = arguments.output / RECIPE_NAME
    print(f"read {source.kind}: {len(source.tensors)} tensors\nwrote {path}")
    print(f"train from it with --config {recipe} --train.load {arguments.output}")
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """Write an export and prove it."""
    from vila_mc.convert.export_checkpoint import export_checkpoint
    from vila_mc.model.megatron_config import DTYPES

    export_checkpoint(
        arguments.checkpoint,
        arguments.output,
        arguments.format,
        tokenizer=arguments.tokenizer,
        dtype=None if arguments.dtype is None else DTYPES[arguments.dtype],
        max_shard_bytes=_num_bytes(arguments.shard_size),
    )
    print(f"wrote {arguments.output}", flush=True)
    if arguments.no_verify:
        print("not verified: run without --no-verify before relying on it")
        return 0
    return _prove(arguments, arguments.output)


def verify_command(arguments: argparse.Namespace) -> int:
    """Prove an export that is there."""
    return _prove(arguments, arguments.export)


def inspect_command(arguments: argparse.Namespace) -> int:
    """Print what a checkpoint is."""
    from vila_mc.convert.describe import describe

    for label, text in describe(arguments.path, trust_pickle=arguments.trust_pickle):
        print(f"{label:<18} {text}")
    return 0


def _prove(arguments: argparse.Namespace, export: Path) -> int:
    from vila_mc.convert.export_checkpoint import Question, prove_export

    proof = prove_export(
        arguments.checkpoint,
        export,
        Question(arguments.question, arguments.image),
        arguments.tokenizer,
        is_streamed=arguments.streamed,
    )
    result = proof.result
    tokens = "read weight by weight" if proof.is_streamed else "greedy tokens equal"
    print(
        f"verified in a fresh process: greatest logit difference {result.max_difference:.2e}, "
        f"mean {result.mean_difference:.2e}, {tokens}"
    )
    if result.answers:
        print(f"the reloaded model, asked {arguments.question!r}: {result.answers[0]!r}")
    if arguments.result:
        write_json(
            arguments.result,
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
