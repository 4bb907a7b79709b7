"""I2X in JAX: structured explanations of how an image classifier learned to decide (arXiv:2603.10234)."""
