"""From raw corpora to indexed datasets to microbatches. No megatron; may import kernels, observe and below."""
