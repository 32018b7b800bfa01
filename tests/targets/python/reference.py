"""What sys.setprofile tells of calls: `reference.py FILE FUNCTION LOG` runs FUNCTION of FILE, and writes to LOG, if it
is not "-", a JSON array of [depth, name] in the order in which the calls began. FILE may be a test module's name.
"""

import gc
import importlib
import json
import random
import runpy
import sys
import tempfile
import unittest


def watch(log):
    open_calls = []

    def profile(frame, event, argument):
        if event in ("call", "c_call"):
            name = frame.f_code.co_name if event == "call" else argument.__name__
            log.append([len(open_calls), name])
            open_calls.append(name)
        elif open_calls:
            open_calls.pop()

    return profile


def run_tests(name):
    module = importlib.import_module(name)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)

    def tests():
        suite.run(unittest.TestResult())

    return tests


def begin():
    file, function, path = sys.argv[1:]
    run = run_tests(file) if function == "tests" else runpy.run_path(file)[function]
    random.seed(1)
    tempfile._get_candidate_names().rng.seed(1)
    gc.disable()  # it would begin where the log's own lists make it
    log = []
    if path != "-":
        sys.setprofile(watch(log))
    run()
    if path != "-":
        sys.setprofile(None)
        with open(path, "w") as out:
            json.dump(log, out)


begin()
