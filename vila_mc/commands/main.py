"""``vila-mc COMMAND ...``: one door to all commands."""

import importlib
import sys

from vila_mc.commands.command import choose
from vila_mc.errors import run_cli

COMMANDS = {
    "train": ("train", "train one phase of a VILA"),
    "preprocess": ("preprocess_data", "raw corpora to an indexed dataset"),
    "inspect": ("inspect_data", "look into an indexed dataset"),
    "tokenizer": ("train_tokenizer", "train a tokenizer on text or raw corpora"),
    "convert": ("convert_checkpoint", "to and from Hugging Face, and say what a checkpoint is"),
    "ask": ("ask", "ask a trained model about images, once"),
    "chat": ("chat", "converse with a model in the terminal, or serve it"),
    "plan": ("plan_cluster", "foretell time, memory and the best layout, without a GPU"),
    "report": ("report", "sum up a training run and draw its curves"),
    "evaluate": ("evaluate", "put a file of questions to a trained model, and count"),
}
"""Module of each command, and what it does."""


def main() -> int:
    """Run the command that the first argument names. Raises VilaError."""
    name, prog, rest = choose(
        {name: text for name, (_, text) in COMMANDS.items()},
        "command",
        sys.argv[1:],
        "vila-mc",
        summary="Train vision-language models in the manner of VILA.",
    )
    # Only the command that is asked for: some take a second to import.
    module = importlib.import_module(f"vila_mc.commands.{COMMANDS[name][0]}")
    return int(module.main(rest, prog))


def vila_mc() -> None:
    """The console script."""
    run_cli(main)


if __name__ == "__main__":
    vila_mc()
