"""``vila-mc convert import --adapters`` and ``export --adapters``: adapters in PEFT's format."""

from pathlib import Path
from typing import TYPE_CHECKING

from vila_mc.commands.command import refuse_unused
from vila_mc.errors import ConfigError, SetupError, say

if TYPE_CHECKING:
    from vila_mc.commands.convert_checkpoint import ExportOptions, ImportOptions
    from vila_mc.convert.proof.compare import Differences


def import_adapters_of(options: "ImportOptions") -> int:
    """Write a checkpoint of adapters beside a base, and compare it with PEFT. Raises VilaError."""
    from vila_mc.convert.import_adapters import import_adapters
    from vila_mc.convert.import_directory import RECIPE_NAME

    if options.adapters is None or options.base is None:
        raise ConfigError("give --adapters and --base together.")
    of_a_model = ("model", "llm", "vision", "connector", "token_order", "tokenizer", "image_mode")
    of_its_weights = ("select_layer", "image_size", "dtype", "trust_pickle", "streamed")
    unused = (*of_a_model, *of_its_weights)
    refuse_unused(options, unused, "adapters are imported alone, beside --base")
    path = import_adapters(options.adapters, options.base, options.output)
    recipe = options.output / RECIPE_NAME
    say(f"wrote {path}, which stands beside {options.base}; every tensor has its place")
    if options.no_verify:
        print("not verified: run without --no-verify before relying on it")
    else:
        say(_compared_with_peft(options.adapters, path))
    say(f"train from it with --config {recipe} --train.load {options.output}")
    return 0


def _compared_with_peft(adapters: Path, checkpoint: Path) -> str:
    from vila_mc.convert.export_adapters import prove_adapters, require_provable
    from vila_mc.convert.import_adapters import rounding_line

    if line := rounding_line(adapters, checkpoint):
        return f"NOT verified: {line}"
    try:
        require_provable(checkpoint)
        return _as_peft(prove_adapters(checkpoint, adapters, checkpoint.parent))
    except (ConfigError, SetupError) as error:
        return f"NOT verified: {error}"


def export_adapters_of(options: "ExportOptions") -> int:
    """Write the adapters of a checkpoint alone, and prove them with PEFT. Raises VilaError."""
    from vila_mc.convert.export_adapters import export_adapters, prove_adapters, require_provable
    from vila_mc.model.megatron_config import DTYPES

    unused = ("merge_lora", "question", "image", "result", "streamed")
    refuse_unused(options, unused, "--adapters writes and compares adapters alone")
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    if not options.no_verify:
        require_provable(options.checkpoint, options.tokenizer)
    export_adapters(options.checkpoint, options.output, options.format, dtype=dtype)
    say(f"wrote {options.output}")
    if options.no_verify:
        print("not verified: run without --no-verify before relying on it")
        return 0
    folder = options.output.absolute().parent
    say(_as_peft(prove_adapters(options.checkpoint, options.output, folder, options.tokenizer)))
    return 0


def _as_peft(result: "Differences") -> str:
    return (
        "verified with peft in a fresh process, beside an export of the base: greatest logit "
        f"difference {result.max_difference:.2e}, mean {result.mean_difference:.2e}, greedy tokens "
        "equal"
    )
