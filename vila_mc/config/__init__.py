"""What a run is: frozen dataclasses, read from YAML and dotted overrides. Imports only errors."""
