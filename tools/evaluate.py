"""Ask a trained model questions about images and count the exact answers.

Questions are JSON Lines with id, task, images, question, answer and chance.
"""

import json
from pathlib import Path

from vila_mc.config.load import ErrorRaisingParser
from vila_mc.data.chat_templates import TEMPLATES, find_template
from vila_mc.errors import ConfigError, run_cli
from vila_mc.files import write_whole


def main() -> int:
    parser = ErrorRaisingParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="step-* directory or run")
    parser.add_argument("--questions", type=Path, required=True, help="JSON Lines of questions")
    parser.add_argument("--images", type=Path, required=True, help="folder of their images")
    parser.add_argument("--output", type=Path, required=True, help="JSON Lines of answers to write")
    parser.add_argument("--tokenizer", type=Path, help="default: the one it was trained with")
    parser.add_argument(
        "--template",
        default="vicuna_v1",
        metavar="NAME",
        help=f"{', '.join(TEMPLATES)}, or a YAML file (default: vicuna_v1)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="questions at a time")
    arguments = parser.parse_args()
    if arguments.batch < 1 or arguments.max_new_tokens < 1:
        raise ConfigError("--batch and --max-new-tokens must be at least 1.")

    from tqdm import tqdm

    from vila_mc.checkpoint.whole import whole_model
    from vila_mc.data.tokenizers.tokenizer import Tokenizer
    from vila_mc.evaluation.questions import answer_record, ask, read_questions
    from vila_mc.evaluation.scores import score

    template = find_template(arguments.template)
    questions = read_questions(arguments.questions, arguments.images)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after
    with whole_model(arguments.checkpoint) as (model, manifest):
        tokenizer_path = arguments.tokenizer or manifest.config.data.tokenizer
        if tokenizer_path is None:
            raise ConfigError("the checkpoint names no tokenizer. Give one with --tokenizer.")
        asked = ask(
            model,
            Tokenizer(tokenizer_path),
            questions,
            arguments.images,
            template=template,
            max_new_tokens=arguments.max_new_tokens,
            batch=arguments.batch,
        )
        answers = list(tqdm(asked, total=len(questions), unit="question", mininterval=1.0))
    lines = [json.dumps(answer_record(answer)) + "\n" for answer in answers]
    write_whole(arguments.output, "".join(lines))
    for task in score(answers):
        print(
            f"{task.task}: {100 * task.accuracy():.1f} % right ({task.num_correct} of "
            f"{task.num_answers}), chance {100 * task.chance:.1f} %"
        )
    return 0


if __name__ == "__main__":
    run_cli(main)
