"""What others have written is shown as it is: it commands no terminal and is no markup."""

from rich.text import Text

from pipeline.cli.tables import new_console, new_table, printable


def shown(renderable: object, capsys) -> str:
    new_console().print(renderable)
    return capsys.readouterr().out


def test_a_terminals_commands_are_made_visible():
    assert printable("a\x1b]0;owned\x07b\x9b31m\u202ec") == "a\\x1b]0;owned\\x07b\\x9b31m\\x202ec"


def test_lines_tabs_and_other_scripts_stay():
    assert (
        printable("a\tb\nGrüße 你好 \N{WAVING HAND SIGN}")
        == "a\tb\nGrüße 你好 \N{WAVING HAND SIGN}"
    )


def test_no_text_in_a_line_a_table_or_a_title_commands_the_terminal(capsys):
    hostile = "id\x1b[2J\x1b]8;;http://evil\x07"
    table = new_table("name", title=hostile)
    table.add_row(hostile)
    table.add_row(Text(hostile))
    out = shown(hostile, capsys) + shown(Text(hostile), capsys) + shown(table, capsys)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert out.count("id\\x1b[2J") == 5


def test_square_brackets_are_no_markup(capsys):
    assert "[red]x[/red] [link=http://evil]y[/link]" in shown(
        "[red]x[/red] [link=http://evil]y[/link]", capsys
    )
