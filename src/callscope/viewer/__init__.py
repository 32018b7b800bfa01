"""The viewer: a trace as a local web page, served on loopback (`callscope view`), or as one file."""
