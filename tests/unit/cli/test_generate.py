"""`tidecache generate`, from the command line to the text, with a real student."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from pipeline.cli import app as cli
from pipeline.config.recipe import resolved_json
from pipeline.generate.decoding import Decoding
from pipeline.generate.sample import generate
from pipeline.text.render import render_prompt
from pipeline.text.response import ResponseText
from storage_schemas.examples import Message

TOKENS = 40


@pytest.fixture(scope="module")
def checkpoint(tiny, make_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "final"
    shutil.copytree(tiny.folder / "student", folder)
    (folder / "recipe.json").write_text(resolved_json(make_recipe("b", folder.parent)))
    return folder


@pytest.fixture
def run(checkpoint):
    def run(*arguments, at=checkpoint):
        options = ("--max-new-tokens", str(TOKENS), "--device", "cpu", *map(str, arguments))
        return CliRunner().invoke(cli.app, ("generate", str(at), *options))

    return run


def expected(tiny, content, **settings):
    """The response to one question, from the sampler itself: text and generation."""
    tokenizer = tiny.tokenizers["student"]
    decoding = Decoding(
        **{"max_new_tokens": TOKENS, "block_size": 16, "steps_per_block": 16} | settings
    )
    (done,) = generate(
        tiny.model("student"),
        [render_prompt([Message(role="user", content=content)], tokenizer)],
        decoding,
        mask_id=tokenizer.mask_id,
        eos_id=tokenizer.eos_id,
        names=["0"],
    )
    return ResponseText.of(tokenizer).of_tokens(done.ids), done


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_prompts_response_is_printed_and_the_speed_is_told_apart(run, tiny):
    text, done = expected(tiny, "def f(x):")
    result = run("--prompt", "def f(x):")
    assert result.exit_code == 0, result.output
    assert result.stdout == text.rstrip("\ufffd") + "\n"
    assert f"{len(done.ids)} tokens in {done.num_steps} steps" in result.stderr
    assert "tokens/s" in result.stderr


def test_every_setting_reaches_the_sampler(run, tiny):
    settings = {"remasking": "random", "temperature": 0.7, "seed": 5, "threshold": 0.6}
    text, done = expected(tiny, "def f(x):", steps_per_block=4, block_size=8, **settings)
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    result = run("--prompt", "def f(x):", "--steps", 4, "--block-size", 8, *options)
    assert result.stdout == text.rstrip("\ufffd") + "\n"
    assert f"in {done.num_steps} steps" in result.stderr


def test_lines_of_prompts_become_lines_of_responses_in_their_order(run, tiny, tmp_path):
    source, output = tmp_path / "prompts.jsonl", tmp_path / "new" / "responses.jsonl"
    rows = [
        {"id": "one", "prompt": "def f(x):"},
        {"id": 2, "messages": [{"role": "user", "content": "def g(x, y, z=None):\n    pass"}]},
        {"prompt": "def h():"},
    ]
    source.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    result = run("--prompts", source, "--output", output, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    got = lines_of(output.read_text())
    assert [line["id"] for line in got] == ["one", "2", "3"]
    for line, content in zip(
        got, ("def f(x):", "def g(x, y, z=None):\n    pass", "def h():"), strict=True
    ):
        text, done = expected(tiny, content)
        assert line["response"] == text
        assert (line["num_tokens"], line["num_steps"]) == (len(done.ids), done.num_steps)
        assert line["is_finished"] is done.is_finished
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert lines_of(run("--prompts", source).stdout) == got


def test_drawn_responses_do_not_depend_on_the_batch_size(run, tiny, tmp_path):
    source = tmp_path / "prompts.jsonl"
    rows = [{"id": str(i), "prompt": "def f(x):"} for i in range(3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, all_at_once = (
        lines_of(run("--prompts", source, "--temperature", 1, "--batch-size", size).stdout)
        for size in (1, 3)
    )
    assert one == all_at_once
    assert len({line["response"] for line in one}) == 3  # equal prompts, different ids


def test_a_file_of_training_records_serves_as_prompts(run, tiny):
    result = run("--prompts", tiny.records, "--max-new-tokens", 3)
    got = lines_of(result.stdout)
    assert [line["id"] for line in got] == [
        json.loads(line)["id"] for line in tiny.records.read_text().splitlines()
    ]
    first = json.loads(tiny.records.read_text().splitlines()[0])
    text, _ = expected(tiny, first["messages"][0]["content"], max_new_tokens=3)
    assert got[0]["response"] == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a"}', "expected one of the fields 'prompt' and 'messages', got id"),
        ('{"prompt": "a", "messages": []}', "expected one of the fields"),
        ('{"prompt": 3}', "expected text in 'prompt', got 3"),
        ('{"messages": []}', "expected 'messages' to be a list of them, got []"),
        ('{"messages": ["hi"]}', "expected a message with role and content, got 'hi'"),
        ('{"messages": [{"role": "user"}]}', "expected text in 'content', got None"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "expected a message before"),
        ('{"prompt": "a", "id": 0.5}', "expected an id of text or a whole number, got 0.5"),
        ('{"prompt": "a", "id": "good"}', "expected an id of its own, got 'good' again"),
        ('{"prompt": "a"', "broken JSON"),
        ('{"prompt": "%s"}' % ("long " * 40_000), "expected a prompt of at most 32728 tokens"),
    ],
)
def test_a_bad_line_is_one_message_with_its_place(run, tmp_path, line, message):
    source, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "fine", "id": "good"}\n' + line + "\n")
    result = run("--prompts", source, "--output", output)
    assert result.exit_code == 2
    assert f"{source}:2: " in result.stderr
    assert message in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one of --prompt and --prompts"),
        (("--prompt", "a", "--prompts", "b.jsonl"), "expected one of --prompt and --prompts"),
        (("--prompt", "a", "--output", "b.jsonl"), "--output needs --prompts"),
        (("--prompts", "no-such.jsonl"), "no-such.jsonl: expected a file"),
        (("--prompt", "a", "--remasking", "none"), "'low_confidence' or 'random', got 'none'"),
        (("--prompt", "a", "--steps", "17"), "as it has tokens, 16, got 17"),
        (("--prompt", "a", "--threshold", "0"), "threshold in (0, 1], got 0"),
        (("--prompt", "a", "--dtype", "int8"), "bfloat16, float16, got 'int8'"),
        (("--prompt", "a", "--device", "tpu9"), "got 'tpu9'"),
        (("--prompt", "a", "--max-new-tokens", "0"), "max_new_tokens of 1 or more, got 0"),
    ],
)
def test_bad_options_are_one_message(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert message in said
    assert "Traceback" not in result.output


def test_half_precision_runs(run):
    result = run("--prompt", "def f(x):", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output


def test_a_checkpoint_without_recipe_needs_a_block_size(run, tiny):
    result = run("--prompt", "def f(x):", at=tiny.folder / "student")
    assert result.exit_code == 2
    assert "--block-size" in result.stderr
    again = run("--prompt", "def f(x):", "--block-size", 16, at=tiny.folder / "student")
    text, _ = expected(tiny, "def f(x):")
    assert again.stdout == text.rstrip("\ufffd") + "\n"
