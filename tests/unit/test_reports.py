"""The reports' text, compared with tests/golden, and their JSON.

To accept a change of a text, run with CALLSCOPE_UPDATE_GOLDEN=1 and read the difference before committing it.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from callscope.errors import TraceError
from callscope.reports import calls, functions, info, modules, tree
from callscope.reports.database import Database
from callscope.reports.selection import Selection
from callscope.reports.text import Style
from callscope.reports.tree_text import Shape
from tests.builders.calls_table import Call, Thread, TraceBuilder, open_built, sample

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PIPE = Style()
TERMINAL = Style(colour=True, width=80)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with open_built(sample(), tmp_path_factory.mktemp("sample") / "git.trace") as opened:
        yield opened


@pytest.fixture(scope="module")
def clockless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    builder = sample()
    builder.clock = False
    with open_built(builder, tmp_path_factory.mktemp("clockless") / "git.trace") as opened:
        yield opened


def report(database: Database, style: Style, selection: Selection | None = None, sort: str = "total") -> Iterator[str]:
    times = functions.function_times(database, selection or Selection(), sort)
    return functions.text(database, times, style)


TEXTS: dict[str, Callable[[Database], Iterable[str]]] = {
    "report": lambda database: report(database, PIPE),
    "report_terminal": lambda database: report(database, TERMINAL, sort="self"),
    "report_thread": lambda database: report(database, PIPE, Selection(thread=1001), "name"),
    "tree": lambda database: tree.text(database, Selection(), Shape(), PIPE),
    "tree_terminal": lambda database: tree.text(database, Selection(), Shape(fold=True, limit=12), TERMINAL),
    "tree_depth": lambda database: tree.text(database, Selection(), Shape(depth=2), PIPE),
    "tree_function": lambda database: tree.text(database, Selection(("walk", "pack::*")), Shape(depth=2), PIPE),
    "tree_last": lambda database: tree.text(database, Selection(thread=1000, last=3), Shape(), PIPE),
    "tree_long_calls": lambda database: tree.text(database, Selection(min_duration_ns=1000), Shape(), PIPE),
    "calls": lambda database: calls.text(database, Selection(), PIPE),
    "calls_terminal": lambda database: calls.text(database, Selection(last=6), TERMINAL, "self", 4),
    "info": lambda database: info.text(known_place(info.info(database)), PIPE),
    "modules": lambda database: modules.text(modules.modules(database), PIPE),
    "modules_terminal": lambda database: modules.text(modules.modules(database), TERMINAL),
}


def known_place(facts: dict[str, object]) -> dict[str, object]:
    """Facts with what differs from run to run replaced."""
    return facts | {"trace": "git.trace", "size": {"events": 2_000_000, "calls": 49_152, "total": 2_100_000}}


def check_golden(name: str, lines: Iterable[str]) -> None:
    text = "\n".join(lines) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("CALLSCOPE_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_as_agreed(name: str, database: Database) -> None:
    check_golden(name, TEXTS[name](database))


@pytest.mark.parametrize("name", ["report", "tree", "calls", "info"])
def test_text_without_a_clock_has_no_times(name: str, clockless: Database) -> None:
    check_golden(f"{name}_clockless", TEXTS[name](clockless))


@pytest.mark.parametrize("name", [name for name in TEXTS if "terminal" in name])
def test_terminal_lines_fit(name: str, database: Database) -> None:
    for line in TEXTS[name](database):
        plain = line
        for code in ("0", "1", "2", "31", "33"):
            plain = plain.replace(f"\x1b[{code}m", "")
        assert "\x1b" not in plain
        assert len(plain) <= 80, line


def test_calls_json_has_exactly_the_fields_promised(database: Database) -> None:
    rows = [json.loads(line) for line in calls.json(database, Selection())]
    assert len(rows) == 21
    assert all(tuple(row) == calls.FIELDS for row in rows)
    assert [row["call_id"] for row in rows] == list(range(21))
    compare = rows[8]
    assert compare == {
        "call_id": 8,
        "parent_id": 2,
        "pid": 1000,
        "tid": 1000,
        "function": "compare",
        "module": "git",
        "address": 0x1600,
        "call_site": "libc.so.6+0x2040",
        "start_ns": 30370,
        "duration_ns": 300,
        "self_ns": 300,
        "depth": 2,
        "ended_by": "return",
        "via": "qsort",
    }
    assert {row["ended_by"] for row in rows} == {"return", "tail_call", "unwound", "running"}
    assert rows[0]["parent_id"] is None and rows[0]["via"] is None


def test_json_without_a_clock_has_no_times(clockless: Database) -> None:
    row = json.loads(next(calls.json(clockless, Selection())))
    assert row["start_ns"] is row["duration_ns"] is row["self_ns"] is None
    times = functions.function_times(clockless, Selection())[0]
    assert times.total_ns is times.p99_ns is None


def test_totals_count_recursion_once(database: Database) -> None:
    walk = next(times for times in functions.function_times(database, Selection()) if times.function == "walk")
    assert (walk.calls, walk.total_ns, walk.self_ns) == (3, 1870, 1700)
    assert (walk.min_ns, walk.max_ns, walk.average_ns) == (200, 1870, 953)


def test_report_of_all_threads_by_nodes_equals_that_by_calls(database: Database) -> None:
    assert functions.function_times(database, Selection()) == functions.function_times(
        database, Selection(process=1000)
    )


@pytest.mark.parametrize("sort", functions.ORDERS)
def test_sorting(sort: str, database: Database) -> None:
    times = functions.function_times(database, Selection(), sort)
    if sort == "name":
        assert [entry.function for entry in times] == sorted(entry.function for entry in times)
    else:
        values = [entry.calls if sort == "calls" else getattr(entry, f"{sort}_ns") for entry in times]
        assert values == sorted(values, reverse=True)


def test_percentile(tmp_path: Path) -> None:
    fast = tuple(Call("spin", 1000 + index) for index in range(197))
    slow = tuple(Call("spin", 1_000_000) for _ in range(3))
    with open_built(TraceBuilder([Thread(1, fast + slow)]), tmp_path / "t") as database:
        (spin,) = functions.function_times(database, Selection())
    assert (spin.min_ns, spin.max_ns) == (1000, 1_000_000)
    assert spin.p99_ns == pytest.approx(1_000_000, rel=0.04)


def test_percentile_leaves_out_the_slowest_hundredth(tmp_path: Path) -> None:
    many = tuple(Call("spin", 1000) for _ in range(199))
    with open_built(TraceBuilder([Thread(1, (*many, Call("spin", 1_000_000)))]), tmp_path / "t") as database:
        (spin,) = functions.function_times(database, Selection())
    assert spin.p99_ns == pytest.approx(1000, rel=0.04)


def test_tree_json_is_the_tree_in_order(database: Database) -> None:
    rows = [json.loads(line) for line in tree.json(database, Selection(("cmd_log",)), Shape(depth=2))]
    assert [row["function"] for row in rows] == ["cmd_log", "walk", "compare", "compare", "emit", "flush"]
    assert [row["descendants"] for row in rows] == [9, 4, 0, 0, 0, 0]
    assert {row["parent_id"] for row in rows[1:]} == {rows[0]["call_id"]}


def test_tree_text_and_json_choose_the_same_calls(database: Database) -> None:
    for selection in (Selection(), Selection(("walk",)), Selection(last=5), Selection(min_duration_ns=500)):
        for shape in (Shape(), Shape(depth=1), Shape(depth=3), Shape(limit=4), Shape(depth=2, limit=3)):
            named = [json.loads(line)["function"] for line in tree.json(database, selection, shape)]
            text = [line for line in tree.text(database, selection, shape, PIPE) if " ns " in line or "s  1" in line]
            assert len(text) == len(named), (selection, shape)
            assert all(name in line for name, line in zip(named, text, strict=True))


def test_calls_around_long_ones_are_kept_even_if_over_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callscope.reports.database.FIRST_RANGE", 2)
    long = Call("jump", 10, (Call("hop", 5, (Call("long", 9000, (Call("short", 5),)),), "tail_call"),), "tail_call")
    short = Call("jump", 10, (Call("brief", 8),), "tail_call")
    roots = (Call("main", 5000, (short, long, short)),)
    with open_built(TraceBuilder([Thread(1, roots)]), tmp_path / "t") as database:
        rows = [json.loads(line) for line in tree.json(database, Selection(min_duration_ns=1000), Shape())]
        assert [row["function"] for row in rows] == ["main", "jump", "hop", "long"]
        assert list(tree.text(database, Selection(min_duration_ns=1000), Shape(), PIPE))[2:6] == [
            " 5.03 us  1  main() {",
            "   10 ns  1    jump() { /* ends in a tail call */",
            "    5 ns  1      hop() { /* ends in a tail call */",
            " 9.01 us  1        long() {...} /* 1 call inside */",
        ]


def test_the_last_calls_of_several_threads_stand_in_what_encloses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("database.FIRST_RANGE", 2), ("tree.BLOCK", 4)):
        monkeypatch.setattr(f"callscope.reports.{name}", value)
    many = tuple(Call(f"step{index}", 100, (Call("inner", 10),)) for index in range(8))
    threads = [Thread(tid, (Call("main", 50, (Call("loop", 20, many),)),), start_ns=7 * tid) for tid in (1, 2, 3)]
    with open_built(TraceBuilder(threads), tmp_path / "t") as database:
        rows = [json.loads(line) for line in tree.json(database, Selection(last=6), Shape())]
        for tid in (1, 2, 3):
            names = [row["function"] for row in rows if row["tid"] == tid]
            assert names == ["main", "loop", "step7", "inner"]
        text = list(tree.text(database, Selection(last=6), Shape(), PIPE))
        assert sum("/* earlier calls left out */" in line for line in text) == 3
        assert enclosing(database, Selection(thread=2, last=1)) == ["main", "loop", "step7", "inner"]
        assert enclosing(database, Selection(("step7",), last=1)) == ["step7", "inner"]


def enclosing(database: Database, selection: Selection) -> list[str]:
    return [json.loads(line)["function"] for line in tree.json(database, selection, Shape())]


def test_deep_recursion_stays_linear(tmp_path: Path) -> None:
    call = Call("leaf", 1)
    for _ in range(600):
        call = Call("down", 1, (call,))
    with open_built(TraceBuilder([Thread(1, (call,))]), tmp_path / "t") as database:
        lines = list(tree.text(database, Selection(), Shape(), PIPE))
    assert max(map(len, lines)) < 260
    assert sum("down() {" in line for line in lines) == sum("} /* down */" in line for line in lines) == 600
    assert any("(+501) leaf();" in line for line in lines)


def test_modules_of_other_processes_keep_their_names(tmp_path: Path) -> None:
    roots = (Call("main", 10, (Call("libc.so.6!malloc", 5), Call("git+0x123", 7))),)
    with open_built(TraceBuilder([Thread(7, roots)]), tmp_path / "t") as database:
        lines = "\n".join(tree.text(database, Selection(), Shape(), PIPE))
    assert " main() {" in lines and " libc.so.6!malloc();" in lines and " git+0x123();" in lines


HOSTILE = "evil\x1b[31m\r\n\x07\u202e\x9bname"
ESCAPED = "evil\\x1b[31m\\x0d\\x0a\\x07\\u202e\\x9bname"


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    builder = TraceBuilder(
        [Thread(1, (Call(HOSTILE, 10, (Call("callee", 5, via=f"lib{HOSTILE}!{HOSTILE}"),)),), name=HOSTILE)]
    )
    builder.session = {"command": [HOSTILE], "rejected": [{"path": HOSTILE, "reason": HOSTILE}]}
    builder.meta = {"warnings": [HOSTILE]}
    with open_built(builder, tmp_path / "t") as database:
        texts = {
            name: list(make(database)) for name, make in TEXTS.items() if name in ("report", "tree", "calls", "info")
        }
    for name, lines in texts.items():
        assert all(line.isprintable() for line in lines), (name, lines)
        assert ESCAPED in "\n".join(lines), name


def test_a_glob_that_matches_nothing_is_an_error_with_advice(database: Database) -> None:
    with pytest.raises(TraceError, match="no function called matches 'cmd_lgo': did you mean 'cmd_log'"):
        list(calls.json(database, Selection(("cmd_lgo",))))
    with pytest.raises(TraceError, match="no function called matches"):
        list(tree.text(database, Selection(("libc*!walk",)), Shape(), PIPE))


def test_unknown_threads_and_processes_are_errors(database: Database) -> None:
    with pytest.raises(TraceError, match="no thread 5 in the trace: choose from 1000, 1001"):
        list(tree.text(database, Selection(thread=5), Shape(), PIPE))
    with pytest.raises(TraceError, match="no process 5 in the trace: choose from 1000"):
        functions.function_times(database, Selection(process=5))


def test_a_module_in_a_glob_chooses(database: Database) -> None:
    assert len(list(calls.json(database, Selection(("git!w*",))))) == 3 + 1 + 3
    assert len(list(calls.json(database, Selection(("pack::Stream<int, char>::push",))))) == 3


def test_min_duration_without_a_clock_is_an_error(clockless: Database) -> None:
    with pytest.raises(TraceError, match="without a clock"):
        list(calls.json(clockless, Selection(min_duration_ns=5)))


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        ({}, "no function of the modules traced was called"),
        ({"options": {"functions": ["x"]}}, "perhaps no function that was called matched --function"),
        ({"rejected": [{"path": "/bin/x", "reason": "is static"}]}, "/bin/x: is static"),
        ({"status": "recording"}, "the recording did not end"),
        ({"rejected": "nonsense", "options": [1], "status": 7}, "no function of the modules"),
    ],
)
def test_an_empty_trace_says_why(session: dict[str, object], reason: str, tmp_path: Path) -> None:
    with open_built(TraceBuilder([], session=session), tmp_path / "t") as database:
        with pytest.raises(TraceError, match=r"no calls in .*") as caught:
            list(report(database, PIPE))
        assert reason in str(caught.value)
        with pytest.raises(TraceError, match=r"no calls in .*"):
            list(calls.json(database, Selection()))
        assert list(info.text(info.info(database), PIPE))


def test_a_session_of_wrong_types_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    wrong = dict.fromkeys(("command", "cwd", "host", "options", "clock", "images", "rejected", "started"), 5)
    with open_built(TraceBuilder([Thread(1, (Call("f", 5),))], session=wrong), tmp_path / "t") as database:
        assert "Recorded" in "\n".join(info.text(info.info(database), PIPE))


def test_a_damaged_table_is_an_error_with_advice(tmp_path: Path) -> None:
    with open_built(sample(), tmp_path / "t") as database:
        path = tmp_path / "t/calls/calls-1-0.parquet"
        data = bytearray(path.read_bytes())
        data[100:900] = bytes(800)
        path.write_bytes(data)
        with pytest.raises(TraceError, match="delete it and try again"):
            list(calls.json(database, Selection()))
    (tmp_path / "t/calls/functions.parquet").unlink()
    with pytest.raises(TraceError, match="delete it and try again"), open_built(None, tmp_path / "t"):
        pass


def test_paths_may_hold_anything(tmp_path: Path) -> None:
    with open_built(sample(), tmp_path / "it's a [1] *.trace") as database:
        assert len(list(calls.json(database, Selection()))) == 21


def test_many_ranges_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callscope.reports.database.FIRST_RANGE", 2)
    monkeypatch.setattr("callscope.reports.database.LONGEST_RANGE", 3)
    monkeypatch.setattr("callscope.reports.database.BATCH", 2)
    with open_built(sample(), tmp_path / "t") as database:
        ids = [json.loads(line)["call_id"] for line in calls.json(database, Selection())]
        assert ids == list(range(21))
        assert len(list(calls.json(database, Selection(("work",)), limit=2))) == 2
        check_golden("tree", TEXTS["tree"](database))
