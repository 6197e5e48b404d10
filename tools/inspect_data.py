"""Look into an indexed dataset: ``vila-mc inspect``, from a checkout."""

from vila_mc.commands.inspect_data import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
