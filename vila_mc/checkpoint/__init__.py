"""Training checkpoints: saved, resumed and read at any layout. May import model and data."""

import vila_mc.parallel  # noqa: F401  # makes the import of megatron quiet
