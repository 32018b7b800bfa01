"""Calls of many traces, processes and hosts as one Parquet data set, which any SQL engine can be asked about."""
