"""Runs until its input ends: threads that call work(), one of which has a profiler of its own. Prints "ready", and at
the end what that profiler missed, and whether another's is left behind. With an argument, the main thread never sleeps.
"""

import sys
import threading
import time

CALLS_OF_FIB = 67  # that one call of work() makes
ended = threading.Event()
missed = []


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def work():
    return fib(8) + ord("a")


def repeat():
    while not ended.is_set():
        work()
        time.sleep(0.003)


def profiled_work():
    return fib(8)


def profile_itself():
    """With its own tool: every call of fib is seen, again and again."""
    seen = []

    def on_event(*event):
        if event[0] is fib.__code__ or (len(event) == 3 and event[1] == "call" and event[0].f_code is fib.__code__):
            seen.append(event)

    if sys.version_info >= (3, 12):
        monitoring = sys.monitoring
        monitoring.use_tool_id(4, "own")
        monitoring.register_callback(4, monitoring.events.PY_START, on_event)
        monitoring.set_local_events(4, fib.__code__, monitoring.events.PY_START)
    else:
        sys.setprofile(on_event)
    while not ended.is_set():
        del seen[:]
        profiled_work()
        count = len(seen)
        if count < CALLS_OF_FIB:
            missed.append(count)
        time.sleep(0.005)


if __name__ == "__main__":
    threads = [threading.Thread(target=target) for target in (repeat, repeat, profile_itself)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    if len(sys.argv) > 1:
        reader = threading.Thread(target=lambda: (sys.stdin.read(), ended.set()))
        reader.start()
        while not ended.is_set():
            work()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    print(missed, sys.getprofile())
