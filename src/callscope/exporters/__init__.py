"""The calls table handed to other tools, one file a format."""
