"""Callscope records what calls what, and when, in programs you cannot or will not rebuild."""

__version__ = "0.1.0"
