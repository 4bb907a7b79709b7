"""Devices, processes, and how programs are compiled for them; whatever leans on the inside of a jaxlib is here."""
