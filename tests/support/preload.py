"""Imported once by the server process that test ranks are forked from."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import vila_mc.train.loop  # noqa: F401
