"""Training a network, and the checkpoints that it leaves."""
