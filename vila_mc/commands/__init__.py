"""The commands: options in, calls, lines out. Each module is one; may import everything below."""
