"""Every command, option of recording and environment variable is documented."""

import re
from pathlib import Path

import click

from callscope.cli.commands import COMMANDS
from callscope.cli.main import callscope_command
from callscope.cli.record import record
from callscope.cli.run import run

ROOT = Path(__file__).resolve().parents[2]
PAGES = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def options(command: click.Command) -> set[str]:
    return {name for option in command.params if isinstance(option, click.Option) for name in option.opts}


def test_every_command_has_a_word() -> None:
    assert [name for name in COMMANDS if f"callscope {name}" not in PAGES] == []


def test_every_option_of_the_reading_commands_has_a_word() -> None:
    page = "".join(
        (ROOT / f"docs/{name}.md").read_text() for name in ("reading", "export", "bytecode", "collect", "view")
    )
    for name in set(COMMANDS) - {"record", "run", "attach", "detach"}:
        assert isinstance(callscope_command, click.Group)
        command = callscope_command.get_command(click.Context(callscope_command), name)
        assert command is not None
        missing = [
            option.opts
            for option in command.params
            if isinstance(option, click.Option)
            and not any(f"`{opt}" in page or f" {opt} " in page for opt in option.opts)
        ]
        assert not missing, name


def test_every_option_of_record_has_a_row() -> None:
    table = (ROOT / "docs/recording.md").read_text()
    assert sorted(name for name in options(record) if f"`{name}" not in table) == []
    assert options(run) - options(record) == {"-s", "--sort", "-n", "--limit"}


def test_the_page_has_no_options_that_do_not_exist() -> None:
    rows = [
        line.split("|")[1] for line in (ROOT / "docs/recording.md").read_text().splitlines() if line.startswith("| `-")
    ]
    documented = {name for row in rows for name in re.findall(r"`(-{1,2}[a-z-]+)", row)}
    assert documented == options(record)


def test_every_environment_variable_has_a_row() -> None:
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "native").rglob("*.c")]
    found = {name for path in sources for name in re.findall(r'"(CALLSCOPE_[A-Z_]+)"', path.read_text())}
    assert found and sorted(name for name in found if f"`{name}`" not in PAGES) == []
