"""Tensor operations of the connector and the splice, with plain torch twins. No megatron."""
