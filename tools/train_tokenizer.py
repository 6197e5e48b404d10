"""Train a tokenizer: ``vila-mc tokenizer``, from a checkout."""

from vila_mc.commands.train_tokenizer import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
