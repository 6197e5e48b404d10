"""Who holds what, as plain arithmetic: no torch, no megatron. Imports config and errors."""
