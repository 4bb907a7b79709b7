"""From measured arrays to the structured explanation, on the host."""
