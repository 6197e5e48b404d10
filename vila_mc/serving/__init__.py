"""A model behind OpenAI's interface, and a page to try it by hand. May import evaluation and below.

One thread owns the model (``engine``); another speaks HTTP (``app``).
"""
