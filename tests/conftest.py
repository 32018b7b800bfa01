"""What all tests share: they are interrupted by SIGINT, wherever they run.

A shell that runs the tests in the background has them, and every program they start, ignore SIGINT.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
