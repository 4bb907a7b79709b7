"""Writing a run: its directory, and the steps that fill it."""
