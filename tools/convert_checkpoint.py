"""Export a training checkpoint of any layout to Hugging Face format, and prove the export.

The directory loads with transformers (trust_remote_code=True); it is reloaded in a fresh process
and its logits and greedy answers are compared with the training model's.
"""

import json
import os
from pathlib import Path
from typing import Any

from vila_mc.config.load import ErrorRaisingParser
from vila_mc.errors import ConfigError, run_cli

QUESTION = "Describe this image."


def main() -> int:
    parser = ErrorRaisingParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a Hugging Face directory and verify it")
    export.add_argument("--checkpoint", type=Path, required=True, help="step-* directory or run")
    export.add_argument("--output", type=Path, required=True, help="directory to write")
    export.add_argument("--tokenizer", type=Path, help="default: the one it was trained with")
    export.add_argument("--dtype", choices=("fp32", "bf16"), help="default: as it was trained")
    export.add_argument("--no-verify", action="store_true", help="write only; prove nothing")
    export.add_argument("--question", default=QUESTION, help=f"asked in the proof ({QUESTION})")
    export.add_argument("--image", type=Path, action="append", default=[], help="asked about")
    export.add_argument("--result", type=Path, help="JSON file for the figures of the proof")
    arguments = parser.parse_args()

    # On the CPU, where transformers is compared too: a GPU's TF32 would differ in the fourth digit.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from vila_mc.checkpoint.hf.export import export_hf
    from vila_mc.checkpoint.hf.verify import verify_export
    from vila_mc.checkpoint.whole import canonical_state, whole_model
    from vila_mc.data.tokenizer import Tokenizer
    from vila_mc.evaluation.prove_export import reference_of, round_weights
    from vila_mc.model.megatron_config import DTYPES

    with whole_model(arguments.checkpoint) as (model, manifest):
        tokenizer_path = arguments.tokenizer or manifest.run.data.tokenizer
        if tokenizer_path is None:
            raise ConfigError("the checkpoint names no tokenizer. Give one with --tokenizer.")
        dtype = DTYPES[arguments.dtype or manifest.run.train.precision]
        round_weights(model, dtype)
        export_hf(canonical_state(model), model.run.model, tokenizer_path, arguments.output, dtype)
        print(f"wrote {arguments.output}", flush=True)
        if arguments.no_verify:
            print("not verified: run without --no-verify before relying on it")
            return 0
        tokenizer = Tokenizer(tokenizer_path)
        reference = reference_of(model, tokenizer, arguments.question, arguments.image)
    result = verify_export(arguments.output, reference)
    print(
        f"verified in a fresh process: greatest logit difference {result.max_difference:.2e}, "
        f"mean {result.mean_difference:.2e}, greedy answers equal"
    )
    print(f"the reloaded model, asked {arguments.question!r}: {result.answers[0]!r}")
    if arguments.result:
        _write_json(
            arguments.result,
            {
                "max_logit_difference": result.max_difference,
                "mean_logit_difference": result.mean_difference,
                "greedy_answers_equal": result.greedy_equal,
                "answers": list(result.answers),
            },
        )
    return 0


def _write_json(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2), encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    run_cli(main)
