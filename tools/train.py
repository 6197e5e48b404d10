"""Train one phase of a VILA: ``vila-mc train``, from a checkout."""

from vila_mc.commands.train import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
