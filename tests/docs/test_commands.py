"""Every command and every block of Python in the documentation runs."""

import pytest
from doc_commands import (
    INSTEAD,
    LANGUAGES,
    PAGES,
    ROOT,
    Command,
    all_commands,
    commands_of,
    instead_of,
    pages_world,
    split_commands,
    try_command,
)
from markdown_it import MarkdownIt
from typer.main import get_command

from pipeline.cli.app import app

COMMANDS = all_commands()


@pytest.fixture(scope="session")
def world():
    with pages_world() as made:
        yield made


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{one.page}:{one.line}" for one in COMMANDS])
def test_a_command_of_a_page_runs(command, world):
    tried = try_command(command, world)
    assert tried.ok, f"{tried.command}\n{tried.detail}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page):
    tokens = MarkdownIt("commonmark").parse((ROOT / page).read_text("utf-8"))
    assert {token.info for token in tokens if token.type == "fence"} <= LANGUAGES
    assert not [token.map for token in tokens if token.type == "code_block"], "fence it"


def test_every_command_of_the_program_is_on_a_page():
    shown = {one.text.split()[1] for one in COMMANDS if one.text.startswith("tidecache ")}
    assert shown >= get_command(app).commands.keys()


def test_nothing_stands_for_a_command_that_no_page_has():
    used = [instead_of(one.text) for one in COMMANDS]
    assert [key for key, entry in INSTEAD.items() if entry not in used] == []


@pytest.mark.parametrize(
    "text",
    ["make no-such-target", "curl example", "pip install 'tidecache[no-such-extra]'", "rm -r x"],
)
def test_a_command_that_nobody_tries_is_a_failure(text, tmp_path):
    from doc_commands import World

    tried = try_command(Command(page="x.md", line=1, text=text), World(tmp_path))
    assert not tried.ok


def test_a_command_that_fails_is_a_failure(tmp_path):
    from doc_commands import World

    text = "tidecache inspect nowhere"
    tried = try_command(Command(page="x.md", line=1, text=text), World(tmp_path))
    assert (tried.status, tried.ok) == ("run", False)
    assert "expected a cache" in tried.detail


def test_a_block_is_read_as_a_shell_reads_it():
    block = "a \\\n  --b  # why\n\n# only this\ncat > f <<'END'\nx # kept\nEND\nc 'd#e'\n"
    assert list(split_commands(block)) == ["a --b", "cat > f <<'END'\nx # kept\nEND", "c 'd#e'"]


def test_prose_gives_its_commands_and_not_its_names(tmp_path, monkeypatch):
    import doc_commands

    (tmp_path / "x.md").write_text(
        "Run `make demo`, `tidecache plan RECIPE` or `tidecache verify`."
    )
    monkeypatch.setattr(doc_commands, "ROOT", tmp_path)
    assert [one.text for one in commands_of("x.md")] == ["make demo", "tidecache plan RECIPE"]
