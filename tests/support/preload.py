"""Imported once by the server process that test ranks are forked from."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import vila_mc.train.loop  # noqa: F401

# A collection in a rank would look at, and so copy, all that is imported here.
gc.collect()
gc.freeze()
