"""Records one program without a word of its own, so that what it prints can be compared: `record_one JSON-OPTIONS`."""

import json
import sys
from pathlib import Path

from callscope.errors import CallscopeError
from callscope.recording.options import RecordOptions
from callscope.recording.record import record


def main() -> int:
    """Exit with the program's status; an error of Callscope goes to standard error, status 250."""
    settings = json.loads(sys.argv[1])
    settings |= {key: tuple(value) for key, value in settings.items() if isinstance(value, list)}
    try:
        result = record(RecordOptions(**settings | {"output": Path(settings["output"])}))
    except CallscopeError as error:
        sys.stderr.write(f"callscope: error: {error}\n")
        return 250
    return result.exit_status


if __name__ == "__main__":
    sys.exit(main())
