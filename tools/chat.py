"""Converse with a model: ``vila-mc chat``, from a checkout."""

from vila_mc.commands.chat import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
