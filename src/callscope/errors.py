"""The exceptions of Callscope.

    CallscopeError
    |-- UsageError        the command line asks for something impossible (exit status 2)
    |-- ImageError        a binary cannot be read, or is of a kind that cannot be traced
    |-- PlanError         a patch plan could not be made, or a cached one is damaged
    |-- RecordError       a program could not be started or traced
    |-- TraceError        a trace cannot be read
    `-- NativeError       a native library is missing or answered an error code

Every message says what is wrong and what to do about it, in one line without a trailing full stop.
"""


class CallscopeError(Exception):
    """Base of all errors a user may see; `exit_status` is what the command line returns for it."""

    exit_status = 1


class UsageError(CallscopeError):
    """The request itself is wrong."""

    exit_status = 2


class ImageError(CallscopeError):
    """A binary cannot be read, or is of a kind that cannot be traced."""


class PlanError(CallscopeError):
    """A patch plan could not be made, or a cached one is damaged."""


class RecordError(CallscopeError):
    """A program could not be started or traced."""


class TraceError(CallscopeError):
    """A trace cannot be read."""


class NativeError(CallscopeError):
    """A native library is missing or answered an error code."""
