"""From events to the calls table, in bounded memory."""
