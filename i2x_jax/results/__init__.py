"""Reading a run: its files, and what they say of prototypes and images."""
