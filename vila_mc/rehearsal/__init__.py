"""A training step without a device: real code on fake CUDA tensors, and what it would take.

May import train and everything below it. Imported only by the command that rehearses.
"""

import vila_mc.parallel  # noqa: F401  # makes the import of megatron quiet
