"""Optimizer, step, loop, faults and the launcher. May import everything."""

import vila_mc.parallel  # noqa: F401  # makes the import of megatron quiet
