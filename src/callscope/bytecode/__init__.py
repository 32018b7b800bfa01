"""Every bytecode instruction that a Python program executes: recorded by its own interpreter, decoded here.

`target/` holds what that interpreter runs, CPython 2.7 and 3.6 to 3.14; it is never imported.
"""
