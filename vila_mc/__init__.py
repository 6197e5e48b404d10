"""vila_mc: a 3D-parallel training engine for vision-language models on Megatron-Core.

Importing this package is free of side effects: it imports neither torch nor megatron, never
initialises CUDA and never changes torch. Read ``vila_mc.flow`` first, then docs/architecture.md.
"""

__version__ = "0.1.0"
