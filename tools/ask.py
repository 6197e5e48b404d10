"""Ask a trained model about images: ``vila-mc ask``, from a checkout."""

from vila_mc.commands.ask import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
