"""To and from Hugging Face: ``vila-mc convert``, from a checkout."""

from vila_mc.commands.convert_checkpoint import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
