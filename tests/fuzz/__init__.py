"""Nonsense for everything that reads bytes from a socket. ``python -m tests.fuzz --help``."""
