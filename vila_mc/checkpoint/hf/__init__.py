"""Name tables between Megatron-Core and Hugging Face, export, verification."""
