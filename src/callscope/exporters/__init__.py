"""A trace handed to other tools: one file a format, behind the registry `FORMATS`."""
