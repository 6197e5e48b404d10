"""Foretell time, memory and the best layout of a recipe: ``vila-mc plan``, from a checkout."""

from vila_mc.commands.plan_cluster import main
from vila_mc.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
