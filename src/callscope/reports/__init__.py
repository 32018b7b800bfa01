"""Questions to the calls table."""
