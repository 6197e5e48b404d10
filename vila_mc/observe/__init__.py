"""Logging, metrics and progress. No megatron; imports flow and below."""
