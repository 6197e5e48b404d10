"""Stages, optimizer, step, loop, faults and the launcher. May import everything."""
