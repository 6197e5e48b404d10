"""Raw corpora to an indexed dataset: ``vila-mc preprocess``, from a checkout."""

from vila_mc.commands.preprocess_data import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
