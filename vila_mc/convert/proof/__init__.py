"""Whether a conversion computes what its source computes, shown in a fresh process."""
