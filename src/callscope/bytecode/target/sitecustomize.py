"""Runs in the traced interpreter before the program, CPython 2.7 and 3.6 on: starts the recorder, and is gone.

`site` imports it because the recorder of callscope put its directory first into PYTHONPATH. Settings stand in the
directory named by CALLSCOPE_BYTECODE. What is imported here is built into every interpreter.
"""

import os
import sys

PYTHON2 = not hasattr(sys, "implementation")
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any  # noqa: F401  (of comments)


def settings(directory):
    # type: (str) -> dict[str, str]
    """Names and values, between zeros."""
    with open(directory + "/settings", "rb") as file:
        content = file.read()
    text = content if PYTHON2 else content.decode("utf-8", "surrogateescape")  # type: Any
    fields = text.split("\0")
    return dict(zip(fields[0::2], fields[1::2]))  # noqa: B905  (CPython 2 has no strict)


def load(path):
    # type: (str) -> Any
    """The extension module in a library."""
    name = "_callscope_bytecode"
    if PYTHON2:
        import imp

        module = imp.load_dynamic(name, path)
    else:
        import _imp

        namespace = type(sys.implementation)  # type: Any
        module = _imp.create_dynamic(namespace(name=name, origin=path))
    sys.modules.pop(name, None)
    return module


def give_up(directory, reason):
    # type: (str, str) -> None
    """End the process; the recorder says why."""
    with open(directory + "/refused", "w") as file:
        file.write(reason)
    os._exit(1)


def check_code(path, header):
    # type: (str, int) -> None
    """Raise what marshal does when a .pyc file holds no code object."""
    import marshal

    with open(path, "rb") as file:
        content = file.read()
    if not isinstance(marshal.loads(content[header:]), type(check_code.__code__)):
        raise ValueError("no code object")


def depth_table():
    # type: () -> Any
    """A function that gives the height of the stack before each code unit, a byte each, 255 where none is known.

    CPython 3.12 on keeps it in a register while it tells of instructions. The effects are those of `dis`; what an
    exception finds on the stack is in the exception table (Objects/exception_handling_notes.txt).
    """
    import dis

    every = dis  # type: Any
    effect, ends = every.stack_effect, ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE")
    jumps = set(dis.hasjrel) | set(dis.hasjabs)

    def table(code):
        # type: (Any) -> bytes
        instructions = list(every.get_instructions(code))
        place = {one.offset: index for index, one in enumerate(instructions)}
        heights = bytearray(b"\xff" * (len(code.co_code) // 2))
        caught = every._parse_exception_table(code)
        waiting = [(0, 0)] + [(place[one.target], one.depth + 1 + bool(one.lasti)) for one in caught]
        while waiting:
            index, height = waiting.pop()
            while index < len(instructions):
                one = instructions[index]
                if not 0 <= height < 255 or heights[one.offset // 2] != 255:
                    break
                heights[one.offset // 2] = height
                if one.opcode in jumps:
                    waiting.append((place[one.argval], height + effect(one.opcode, one.arg, jump=True)))
                if one.opname in ends or one.opname.startswith("JUMP"):
                    break
                height += effect(one.opcode, one.arg if one.opcode >= dis.HAVE_ARGUMENT else None, jump=False)
                if one.opname == "RETURN_GENERATOR" and not effect(one.opcode, None):
                    height += 1  # what is sent first, popped behind it
                index += 1
        return bytes(heights)

    return table


def begin():
    # type: () -> None
    """Restore the environment, then start the recorder."""
    known = set(sys.modules)
    directory = os.environ.pop("CALLSCOPE_BYTECODE")
    chosen = settings(directory)
    if "path" in chosen:
        os.environ["PYTHONPATH"] = chosen["path"]
    else:
        del os.environ["PYTHONPATH"]
    while directory in sys.path:
        sys.path.remove(directory)
    sys.path_importer_cache.pop(directory, None)
    if "pyc" in chosen:
        try:
            check_code(chosen["pyc"], int(chosen["header"]))
        except Exception as error:
            give_up(directory, "pyc " + (str(error) or type(error).__name__))
    version = sys.version_info[0] * 100 + sys.version_info[1]
    thread = __import__("thread" if version < 300 else "_thread")
    try:
        load(chosen["library"]).start(
            version,
            directory + "/events",
            directory + "/codes",
            tuple(chosen["names"].split("\n")) if chosen["names"] else (),
            int(chosen["every_file"]),
            tuple(chosen["files"].split("\n")) if chosen["files"] else (),
            int(chosen["limit"]),
            int(chosen["values"]),
            int(chosen["infer"]),
            depth_table() if version >= 312 and int(chosen["values"]) else None,
            sys._getframe(),
            getattr(sys, "monitoring", None),
            thread,
        )
    except Exception as error:
        give_up(directory, "recorder " + str(error))
    for name in set(sys.modules) - known - {"thread"}:  # the recorder's functions stay in that one
        del sys.modules[name]


begin()
del sys.modules["sitecustomize"]
__import__("sitecustomize")  # the program's own; when there is none, site expects this error
