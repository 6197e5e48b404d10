"""Ask a trained model questions about images: ``vila-mc evaluate``, from a checkout."""

from vila_mc.commands.evaluate import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
