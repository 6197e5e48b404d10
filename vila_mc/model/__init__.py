"""VilaModel, one pipeline stage, and its parts, built on Megatron-Core."""
