"""VilaModel, one pipeline stage, and its parts, built on Megatron-Core."""

import vila_mc.parallel  # noqa: F401  # makes the import of megatron quiet
