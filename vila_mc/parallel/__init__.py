"""Process groups, seeds and the CPU backend. May import megatron, and flow and below."""
