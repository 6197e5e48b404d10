"""Readers of raw corpora: each turns files into RawSamples."""
