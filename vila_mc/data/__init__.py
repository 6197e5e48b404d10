"""From raw corpora to indexed datasets to microbatches.

Knows nothing of megatron; may import kernels, observe and what is below them. Only ``collate``,
``workers`` and ``loader`` import torch, so that preprocessing starts at once.
"""
