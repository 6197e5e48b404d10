"""Public tasks: their files as released, what is asked, and how answers are judged."""
