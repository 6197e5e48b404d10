"""Indexed datasets on disk, Megatron's .bin and .idx with a manifest: written, read, described."""
