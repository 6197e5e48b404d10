"""Sum up a training run and draw its curves: ``vila-mc report``, from a checkout."""

from vila_mc.commands.report import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
