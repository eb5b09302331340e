"""`tidecache report` from the command line."""

from pathlib import Path

from tiny import Tiny, lines, write_lines
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache


def _run(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_folder_that_is_no_run_is_one_message(tmp_path):
    result = _run(tmp_path, "--output", tmp_path / "page")
    assert result.exit_code == 2
    assert "expected a finished run of 'tidecache student-train'" in result.stderr
    assert not (tmp_path / "page").exists()


def test_a_url_is_refused():
    result = _run("s3://bucket/run", "--output", "page")
    assert result.exit_code == 2
    assert "copy the folder first" in result.stderr


def test_a_run_becomes_a_page(tiny: Tiny, tmp_path: Path):
    cache = str(tmp_path / "cache")
    run_teacher_cache(tiny.recipe("a", tmp_path))
    for name, objective in (("ce", "masked_nll"), ("calm", "calm")):
        settings = {
            "cache.path": cache,
            "train.output": str(tmp_path / name),
            "train.max_steps": 1,
            "objective": {"type": objective},
        }
        run_student_train(tiny.recipe("a", tmp_path, **settings), shows_progress=False)
    rows = [line | {"id": f"unseen/{i}"} for i, line in enumerate(lines()[:3])]
    unseen = write_lines(tmp_path / "unseen.jsonl", rows)
    result = _run(
        tmp_path / "calm",
        *("--control", tmp_path / "ce", "--records", unseen, "--cache", cache),
        *("--views", 4, "--title", "Two students", "--output", tmp_path / "page"),
    )
    assert result.exit_code == 0, result.output
    assert "over 3 records of one seed" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1] == str(tmp_path / "page" / "report.html")
    assert "<title>Two students</title>" in (tmp_path / "page" / "report.html").read_text("utf-8")
