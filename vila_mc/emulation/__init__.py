"""Transformer Engine's own Python code on a CPU, over a stand-in for its compiled part.

May import ``errors``, ``patch`` and ``torch_on_cpu``. Nothing but ``install`` is meant for other
packages, and they call it only where a person has asked for emulation.
"""
