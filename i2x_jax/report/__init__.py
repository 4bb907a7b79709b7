"""What people look at: the contact sheet of the prototypes and the summary of a run."""
