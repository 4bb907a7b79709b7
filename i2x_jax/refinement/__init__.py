"""Fine-tuning on chosen samples, its controls, and the table that compares them."""
