"""How long a step takes, what it holds and which layout is best: arithmetic, without torch."""
