"""The static call map, against objdump and against a program whose calls are known."""

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from callscope.cli.main import main
from callscope.errors import TraceError
from callscope.reports.callmap import CallMap, read_map
from callscope.reports.database import open_database
from tests.builders.compilers import MINGW, compile_program, have
from tests.builders.tracing import callscope

SOURCE = """
#include <stdio.h>
#include <stdlib.h>
int depth;
__attribute__((noinline)) int leaf(int n) { depth += n; return n + depth; }
__attribute__((noinline)) int tailing(int n) { depth++; return leaf(n + 1); }
__attribute__((noinline)) int other(int n) { depth--; return n * 3; }
int (*volatile pointer)(int) = other;
__attribute__((noinline)) int indirect(int n) { return pointer(n) + 1; }
__attribute__((noinline)) int never(int n) { return leaf(n) * 2 + rand(); }
int main(int argc, char **argv) {
    int sum = 0;
    for (int i = 0; i < 5; i++)
        sum += tailing(i) + indirect(i);
    if (argc > 5)
        sum += never(sum);
    printf("%d\\n", sum);
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("map")
    (directory / "calls.c").write_text(SOURCE)
    return compile_program([directory / "calls.c"], directory / "calls", ["-O2", "-fno-plt", "-fcf-protection=none"])


def sites(found: CallMap, function: str) -> list[tuple[str, str | None, bool]]:
    (caller,) = [caller for caller in found.functions if caller.name == function]
    return [(site.kind, site.target, site.imported) for site in caller.sites]


@pytest.mark.parametrize("flags", [["-fno-plt"], ["-fplt"], ["-fplt", "-no-pie"]], ids=str)
def test_every_kind_of_site(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "calls.c").write_text(SOURCE)
    found = read_map(compile_program([tmp_path / "calls.c"], tmp_path / "calls", ["-O2", *flags]))
    library = "indirect call" if "-fno-plt" in flags else "call"
    assert sites(found, "tailing") == [("tail", "leaf", False)]
    assert sites(found, "leaf") == []
    assert sites(found, "indirect") == [("indirect call", None, False)]
    assert sites(found, "never") == [("call", "leaf", False), (library, "rand", True)]
    assert Counter(sites(found, "main")) == {
        ("call", "tailing", False): 1,
        ("call", "indirect", False): 1,
        ("call", "never", False): 1,
        (library, "printf", True): 1,
    }
    taken = {caller.name for caller in found.functions if caller.is_taken}
    assert "other" in taken
    assert "leaf" not in taken


SQL = """
create table t(a integer primary key, b text); insert into t values (1, 'x'), (2, 'y'), (3, 'z');
create index i on t(b); select t.a, sum(u.a) from t join t u on u.b >= t.b group by t.a order by 2 desc;
with recursive n(v) as (select 1 union all select v + 1 from n where v < 9) select group_concat(v) from n;
update t set b = upper(b) where a > 1; delete from t where b like 'Z%'; select json_group_array(b) from t;
"""
WORK = {
    "bash": (
        ["bash", "-c", "f() { for i in a b c; do echo $((i + 1)) | cat; done; }; f; x=(1 2); echo ${x[@]/1/3}"],
        "bash",
    ),
    "git": (["git", "-c", "core.pager=cat", "help", "-a"], "git"),
    "sqlite3": (["sqlite3", ":memory:", SQL], "libsqlite3*"),
}
"""What is recorded of a program, and the module that its calls lie in."""


def objdumps_calls(path: str) -> dict[int, int | None]:
    """Every call of a program's text as objdump reads it: address -> where it goes, None where that is not said."""
    done = subprocess.run(["objdump", "-d", "-j", ".text", path], capture_output=True, text=True, check=True)
    found = re.findall(r"^ +([0-9a-f]+):.*\tcall +(?:([0-9a-f]+) <)?", done.stdout, re.M)
    return {int(place, 16): int(target, 16) if target else None for place, target in found}


def module_of(name: str) -> str:
    """The file that holds what a program does: sqlite3's is its library."""
    path = shutil.which(name)
    if path is None or not have("objdump"):
        pytest.skip(f"{name} or objdump is not installed")
    if name != "sqlite3":
        return path
    libraries = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    return str(re.findall(r"=> (\S*libsqlite3\S*)", libraries)[0])


@pytest.mark.parametrize("name", WORK)
def test_calls_of_real_programs_are_objdumps(name: str) -> None:
    path = module_of(name)
    wanted = objdumps_calls(path)
    sites = [site for site in read_map(Path(path)).sites if site.kind in ("call", "indirect call")]
    assert {site.address: site.target_address for site in sites} == wanted
    assert len(wanted) > 10_000


@pytest.mark.parametrize("name", WORK)
def test_recorded_calls_of_real_programs_are_objdumps(name: str, tmp_path: Path, plan_cache: Path) -> None:
    path = module_of(name)
    command, module = WORK[name]
    trace = tmp_path / "work.trace"
    done = callscope(["record", "-q", "-m", module, "-o", trace, *command], plan_cache)
    assert done.status == 0, done.errors
    wanted = objdumps_calls(path)
    static = read_map(Path(path))
    goes_to = {
        site.returns_to: wanted[site.address] for site in static.sites if site.kind == "call" and not site.imported
    }
    with open_database(trace) as database:
        rows = database.rows(
            "SELECT DISTINCT s.rva, f.address FROM call_rows c JOIN sites s ON s.site = c.site"
            " JOIN functions f ON f.function_id = c.function_id LEFT JOIN call_rows p ON p.call_id = c.call_id - c.up"
            f" WHERE NOT c.gap AND s.module = f.module AND f.module = '{Path(path).name}'"
            " AND (c.up = 0 OR p.ended_by != 1)"  # what a tail jump led to has the call site of what jumped
        )
    edges = [(row["address"], goes_to[row["rva"]]) for row in rows if row["rva"] in goes_to]
    assert len(edges) > 130
    assert [pair for pair in edges if pair[0] != pair[1]] == []


@pytest.mark.skipif(not have(*MINGW.values()), reason="mingw-w64 is not installed")
def test_windows_programs(tmp_path: Path) -> None:
    (tmp_path / "calls.c").write_text(SOURCE)
    found = read_map(compile_program([tmp_path / "calls.c"], tmp_path / "calls.exe", ["-O2"], "mingw"))
    assert sites(found, "tailing") == [("tail", "leaf", False)]
    assert ("call", "rand", True) in [(kind, target and target.rpartition("!")[2], imported)
                                      for kind, target, imported in sites(found, "never")]  # fmt: skip


def test_traces_say_what_was_called(program: Path, tmp_path: Path, plan_cache: Path) -> None:
    trace = tmp_path / "calls.trace"
    assert callscope(["record", "-q", "-o", trace, program], plan_cache).status == 0
    answer = callscope(["map", program, "--trace", trace, "--format", "json"], plan_cache)
    functions = {function["name"]: function for function in json.loads(answer.output)["functions"]}
    seen = {(name, site["target"]): site["seen"] for name, function in functions.items() for site in function["sites"]}
    assert seen["main", "indirect"] == {"indirect": 5}
    assert seen["indirect", None] == {"other": 5}
    assert seen["never", "leaf"] == {}
    assert seen["main", "tailing"]["tailing"] == 5
    text = callscope(["map", program, "--trace", trace, "--never"], plan_cache).output
    assert re.search(r"call\s+never\s+never$", text, re.M)
    assert "5 x" not in text
    dot = callscope(["map", program, "--trace", trace, "--format", "dot", "-f", "indirect"], plan_cache).output
    assert 'label="5 x", style=dashed' in dot


def test_other_builds_and_wrong_usage(program: Path, tmp_path: Path, plan_cache: Path) -> None:
    trace = tmp_path / "calls.trace"
    assert callscope(["record", "-q", "-o", trace, program], plan_cache).status == 0
    changed = tmp_path / program.name
    (tmp_path / "other.c").write_text(SOURCE.replace("* 3", "* 4"))
    compile_program([tmp_path / "other.c"], changed, ["-O2"])
    answer = callscope(["map", changed, "--trace", trace], plan_cache)
    assert answer.status == 1
    assert "another build" in answer.errors
    assert main(["map", str(program), "--never"]) == 2
    with pytest.raises(TraceError):
        from callscope.reports.callmap import chosen

        chosen(read_map(program), ["nothing_*"], never=False)


VERSIONS = """
#include <stdio.h>
__attribute__((noinline)) int same(int n) { return n * 7 + (n >> 3); }
__attribute__((noinline)) int caller(int n) { return same(n) + CALLED(n) * 3; }
__attribute__((noinline)) int first(int n) { return n ^ 0x55; }
__attribute__((noinline)) int second(int n) { return (n | 3) - 1; }
#ifdef OLD
__attribute__((noinline)) int gone(int n) { return same(n) / 9; }
#else
__attribute__((noinline)) int arrived(int n) { return same(n) / 11 + first(n); }
__attribute__((noinline)) int padding(int n) { return n << 5; }
#endif
__attribute__((noinline)) int changed(int n) { return same(n) + CONSTANT; }
int main(int argc, char **argv) {
    printf("%d\\n", caller(argc) + changed(argc) + first(argc) + second(argc) + ONLY(argc));
    return 0;
}
"""


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("versions")
    source = directory / "versions.c"
    source.write_text("int first(int n), second(int n), gone(int n), arrived(int n), padding(int n);\n" + VERSIONS)
    builds = {"old": ["-DOLD", "-DCALLED=first", "-DCONSTANT=12", "-DONLY=gone"],
              "new": ["-DCALLED=second", "-DCONSTANT=13", "-DONLY(x)=arrived(x)+padding(x)"]}  # fmt: skip
    found = {}
    for name, flags in builds.items():
        found[name] = compile_program([source], directory / name, ["-O1", *flags])
        found[f"{name} stripped"] = directory / f"{name}.stripped"
        subprocess.run(["strip", "-o", found[f"{name} stripped"], found[name]], check=True)
    return found


def compared(before: Path, after: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["map", str(before), "--diff", str(after), "--format", "json"]) in (None, 0)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_versions_are_compared_by_name(versions: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(versions["old"], versions["new"], capsys)
    assert [f["name"] for f in found["gone"]] == ["gone"]
    assert [f["name"] for f in found["new"]] == ["arrived", "padding"]
    changed = {entry["before"]["name"]: entry for entry in found["changed"]}
    assert set(changed) == {"caller", "changed", "main"}
    assert changed["caller"]["calls_added"] == {"second": 1} and changed["caller"]["calls_removed"] == {"first": 1}
    assert changed["changed"]["code"] and not changed["changed"]["calls_added"]
    assert changed["main"]["calls_added"] == {"arrived": 1, "padding": 1}
    same = compared(versions["new"], versions["new"], capsys)
    assert same["gone"] == same["new"] == same["changed"] == []


def test_stripped_versions_are_compared_by_code(versions: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The stripped new version against the old one with names: each pair must be the same function."""
    found = compared(versions["old"], versions["new stripped"], capsys)
    truth = {function.address: function.name for function in read_map(versions["new"]).functions}
    pairs = {entry["before"]["name"]: truth[entry["after"]["address"]] for entry in found["changed"]}
    assert all(name == other for name, other in pairs.items()), pairs
    assert "caller" in pairs and "changed" not in {f["name"] for f in found["new"]}
    both = compared(versions["old stripped"], versions["old stripped"], capsys)
    assert both["gone"] == both["new"] == both["changed"] == []


def test_versions_as_text(versions: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["map", str(versions["old"]), "--diff", str(versions["new"])])
    text = capsys.readouterr().out
    assert "  - 1 x first\n  + 1 x second\n" in text and "\nGone\n- 0x" in text
    assert main(["map", str(versions["old"]), "--diff", str(versions["new"]), "--format", "dot"]) == 2
