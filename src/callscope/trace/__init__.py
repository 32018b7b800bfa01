"""Trace directory -> processes, threads, modules over time, chunks of events, clock. format/SPEC.md is the contract."""
