"""The record of a step, and the sinks it goes to. No megatron; imports flow and below."""
