"""Looking into finished datasets: facts, one sample as a page, checks, and the way back."""
