"""Developer's tools, traced whole: git, gdb, sqlite3, gcc and g++ with their passes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.tracing import run_plain, run_traced
from tests.integration.test_programs_own import EVERYTHING, same

GIT = r"""
set -e
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=A
export GIT_COMMITTER_EMAIL=a@b GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'
git init -q -b main repository; cd repository
for i in 1 2 3 4 5; do
  for f in a b c d; do seq $((i * 10)) $((i * 100)) > $f$i; echo "$i" >> shared; done
  git add . ; git commit -q -m "commit $i"
done
git log --stat --format='%H %s' | head -40
git diff HEAD~2 --shortstat; git blame shared | tail -2
git checkout -q -b other HEAD~1; echo other >> shared; git commit -qam other; git merge -q main || echo conflict
git status --short; git merge --abort; git stash list; git gc --quiet --prune=now; git fsck --strict 2>&1
git count-objects; git rev-list --all --objects | wc -l; git grep -c 99 -- 'a*'; git cat-file -p HEAD
git nonsense
"""


@pytest.mark.skipif(not have("git"), reason="git is not installed")
def test_git(tmp_path: Path, plan_cache: Path) -> None:
    outcomes = []
    for name in ("plain", "traced"):
        (tmp_path / name).mkdir()
    outcomes = [
        run_plain(["bash", "-c", GIT], cwd=tmp_path / "plain"),
        run_traced(["bash", "-c", GIT], tmp_path / "t", plan_cache, cwd=tmp_path / "traced"),
    ]
    assert "conflict" in outcomes[0].output
    assert outcomes[0].status == 1
    same(*outcomes)


@pytest.mark.skipif(not have("gdb"), reason="gdb is not installed")
def test_gdb(tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "exceptions.cpp"], tmp_path / "exceptions", ["-O1", "-g", "-pthread"])
    steps = ["set width 0", "set debuginfod enabled off", "info line main", "break describe", "run > /dev/null",
             "backtrace", "info registers rip", "delete", "continue", "disassemble main,+20"]  # fmt: skip
    command = ["gdb", "-nx", "-batch", *(word for step in steps for word in ("-ex", step)), str(program)]
    # The agent goes into gdb, not into what gdb runs: that is another program's business.
    outcomes = [run_plain(command), run_traced(command, tmp_path / "t", plan_cache, recording={"follow": False})]
    assert "describe" in outcomes[0].output
    assert "exited with code 03" in outcomes[0].output
    varying = re.compile(r"process \d+|Thread 0x[0-9a-f]+ \(LWP \d+\)|\(0x7f[0-9a-f]+\)|0x7[0-9a-f]{10,11}")
    same(*(replace(outcome, output=_settled(varying, outcome.output)) for outcome in outcomes))


def _settled(varying: re.Pattern[str], text: str) -> str:
    """The text without what differs between any two runs; messages of threads may come in any order."""
    return "\n".join(sorted(varying.sub("?", line) for line in text.splitlines()))


SQL = """
CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, value REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
INSERT INTO t SELECT i, 'name ' || (i * 7919 % 100003), i / 7.0 FROM n;
CREATE INDEX by_name ON t (name);
SELECT count(*), round(sum(value), 3), min(name), max(name) FROM t;
SELECT a.id, b.id FROM t a JOIN t b ON a.name = b.name AND a.id < b.id LIMIT 3;
UPDATE t SET value = value * 2 WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0;
SELECT count(*), round(sum(value), 3) FROM t; PRAGMA integrity_check;
SELECT * FROM missing;
"""


@pytest.mark.skipif(not have("sqlite3"), reason="sqlite3 is not installed")
@pytest.mark.parametrize("modules", [["sqlite3", "libsqlite3*"]], ids=["with the library"])
def test_sqlite3(modules: list[str], tmp_path: Path, plan_cache: Path) -> None:
    plain = run_plain(["sqlite3", tmp_path / "plain.db"], input=SQL)
    assert plain.output.splitlines()[0].startswith("100000|")
    recording = {"modules": modules}
    traced = run_traced(["sqlite3", tmp_path / "traced.db"], tmp_path / "t", plan_cache, recording=recording, input=SQL)
    same(plain, traced)
    assert (tmp_path / "plain.db").read_bytes() == (tmp_path / "traced.db").read_bytes()


@pytest.mark.skipif(not have("gcc", "g++", "as", "ld"), reason="gcc is not installed")
@pytest.mark.parametrize("compiler", ["gcc", "g++"])
def test_compiler_with_all_its_passes(compiler: str, tmp_path: Path, plan_cache: Path) -> None:
    source = TARGETS / ("exceptions.cpp" if compiler == "g++" else "stacks.c")
    for name in ("plain", "traced"):
        (tmp_path / name).mkdir()
    command = [compiler, "-O1", "-pthread", "-pipe", "-frandom-seed=1", "-Wall", "-o", "program", str(source)]
    outcomes = [
        run_plain(command, cwd=tmp_path / "plain"),
        run_traced(command, tmp_path / "t", plan_cache, timeout=300, cwd=tmp_path / "traced"),
    ]
    same(*outcomes)
    assert (tmp_path / "plain/program").read_bytes() == (tmp_path / "traced/program").read_bytes()


@pytest.mark.skipif(not have("gcc"), reason="gcc is not installed")
def test_compiler_reports_the_same_errors(tmp_path: Path, plan_cache: Path) -> None:
    (tmp_path / "bad.c").write_text("int main(void) { return missing(1) + ; }\n")
    command = ["gcc", "-c", "bad.c"]
    plain = run_plain(command, cwd=tmp_path)
    assert plain.status == 1
    same(plain, run_traced(command, tmp_path / "t", plan_cache, timeout=300, recording=EVERYTHING, cwd=tmp_path))
