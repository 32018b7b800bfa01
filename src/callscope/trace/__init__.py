"""From a trace directory to events, processes and the module timeline."""
