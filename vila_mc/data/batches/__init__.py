"""Indexed datasets to microbatches: blend, sample, pack, balance, decode ahead, collate."""
