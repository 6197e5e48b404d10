"""Generation, question answering and the report. May import checkpoint and below."""
