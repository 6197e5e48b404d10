"""Training checkpoints, and conversion to and from Hugging Face. May import model and data."""

import vila_mc.parallel  # noqa: F401  # makes the import of megatron quiet
