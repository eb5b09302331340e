"""`tidecache plan` against what a run of stage 1 then really stores, reads and takes."""

import json
from pathlib import Path

import pytest
from tiny import write_lines
from typer.testing import CliRunner

from pipeline.cache.reader import CacheReader
from pipeline.cli.app import app
from pipeline.plan.plan import Plan, plan_json, plan_recipe
from pipeline.plan.settings import settings_of
from pipeline.teacher import transformers_backend
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import RecipeError, TeacherError

_BYTES = 0.25  # how far planned bytes may be from real ones
_SAMPLED = 0.25  # and counts that were scaled up from half of the records
SKETCH = {
    "type": "tokens",
    "k": 4,
    "tail": {"type": "sketch", "step": 0.05, "calibration_records": 6},
}
MEAN = {"type": "tokens", "k": 16, "tail": {"type": "mean_logit", "calibration_records": 4}}
SETTINGS = {
    "a": ("a", {}),
    "a, top k, CompDemo": ("a", {"targets.k": 8, "noise.compdemo": {}}),
    "b": ("b", {}),
    "b, exact": ("b", {"targets.logits_dtype": "float32", "noise.compdemo": None}),
    "b, mean logit": ("b", {"targets": MEAN}),
    "b, sketch": ("b", {"targets": SKETCH}),
    "b, sketch alone": ("b", {"targets": SKETCH | {"k": 0}, "noise.views": 3}),
}


@pytest.fixture
def teacher_work(monkeypatch):
    """Passes that the teacher ran and tokens that it read, counted where it runs."""
    work = {"passes": 0, "tokens": 0}
    real = transformers_backend.TransformersBackend._blocks

    def counted(self, group, passes, keeper):
        halves = 1 if self._block_size is None else 2
        work["passes"] += len(passes)
        work["tokens"] += sum(halves * len(one.clean_ids_T) for one in passes)
        return real(self, group, passes, keeper)

    monkeypatch.setattr(transformers_backend.TransformersBackend, "_blocks", counted)
    return work


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore")
def test_a_plan_is_what_a_run_then_stores_and_reads(name, make_recipe, tmp_path, teacher_work):
    kind, changes = SETTINGS[name]
    recipe = make_recipe(kind, tmp_path, **changes)
    planned = plan_recipe(recipe).rows[0]
    assert teacher_work["passes"] == 0, "a plan runs no teacher"
    assert not Path(recipe.cache.path).exists(), "a plan writes nothing"
    stored = run_teacher_cache(recipe).counts
    assert planned.counts.stored == stored
    assert planned.counts.num_shards == len(CacheReader.open(recipe.cache.path).entries)
    assert planned.passes == teacher_work["passes"] > 0
    assert planned.teacher_tokens == teacher_work["tokens"] > 0


def assert_bytes(plan: Plan, after: Plan) -> None:
    """All that is not known to the byte is near, kind by kind where it is much."""
    planned, used = plan.rows[0].sizes, after.used.sizes
    assert planned["vocabularies"] == used["vocabularies"]
    own = [kind for kind in used if kind not in ("vocabularies", "basis")]
    total = sum(used[kind] for kind in own)
    assert sum(planned[kind] for kind in own) == pytest.approx(total, rel=_BYTES)
    for kind in own:
        if used[kind] > 0.1 * total:
            assert planned[kind] == pytest.approx(used[kind], rel=_BYTES), kind
    # the plan leaves out what describes the arrays of the basis
    assert planned["basis"] == pytest.approx(used["basis"], rel=_BYTES, abs=10_000)


@pytest.mark.parametrize("name", ["a", "a, top k, CompDemo", "b", "b, exact", "b, mean logit"])
def test_planned_bytes_are_near_the_real_ones(name, make_recipe, tmp_path):
    kind, changes = SETTINGS[name]
    recipe = make_recipe(kind, tmp_path, **changes)
    plan = plan_recipe(recipe)
    assert plan.used is None
    run_teacher_cache(recipe)
    assert_bytes(plan, plan_recipe(recipe))


@pytest.mark.parametrize("k", [0, 4])
def test_a_measured_sketch_takes_what_was_measured(k, make_recipe, tmp_path):
    recipe = make_recipe("b", tmp_path, targets=SKETCH | {"k": k})
    plan = plan_recipe(recipe, measure=12)
    row = plan.rows[0]
    assert row.bytes_from == "measured"
    assert plan.tokens_per_second is not None
    assert row.hours == pytest.approx(row.teacher_tokens / plan.tokens_per_second / 3600)
    run_teacher_cache(recipe)
    assert_bytes(plan, after := plan_recipe(recipe))
    assert after.rows[0].bytes_from == "the cache"


def test_what_the_cache_holds_stands_beside_the_plan(make_recipe, tmp_path):
    recipe = make_recipe("b", tmp_path)
    summary = run_teacher_cache(recipe)
    more = make_recipe("b", tmp_path, **{"noise.views": 4})
    plan = plan_recipe(more)
    assert plan.used.stored == summary.counts
    assert plan.used.num_bytes == sum(
        path.stat().st_size
        for folder in ("shards", "common")
        for path in (tmp_path / "cache" / folder).rglob("*")
        if path.is_file()
    )
    assert plan.rows[0].counts.stored.num_views == 2 * summary.counts.num_views
    assert plan.notes == tuple(note for note in plan.notes if "left out" in note)
    other = plan_recipe(make_recipe("b", tmp_path, **{"noise.seed": 5}))
    assert "noise.seed: the cache has 0, the recipe asks for 5" in other.notes


@pytest.mark.parametrize(("kind", "targets"), [("a", None), ("b", None), ("b", SKETCH)])
def test_neighbours_are_the_plans_of_those_recipes(kind, targets, make_recipe, tmp_path):
    recipe = make_recipe(kind, tmp_path, **({} if targets is None else {"targets": targets}))
    rows = {row.name: row for row in plan_recipe(recipe).rows}
    settings = {one.name: one.recipe for one in settings_of(recipe)}
    assert {"half the views", "twice the views"} < rows.keys()
    assert ("with CompDemo" if kind == "a" else "without CompDemo") in rows
    if targets is None:
        assert ("chunks, k = 8" if kind == "a" else "top 64, even tail") in rows
    else:
        assert {"sketch, gradient error 0.10", "sketch, gradient error 0.25"} < rows.keys()
    for name, row in rows.items():
        own = plan_recipe(settings[name]).rows[0]
        assert (row.counts, row.sizes, row.bytes_from) == (own.counts, own.sizes, own.bytes_from)


def test_a_sample_is_scaled_up(tiny, make_recipe, tmp_path):
    rows = [
        json.loads(line) | {"id": f"{copy}/{number}"}
        for copy in range(8)
        for number, line in enumerate(tiny.records.read_text(encoding="utf-8").splitlines())
    ]
    records = write_lines(tmp_path / "many.jsonl", rows)
    recipe = make_recipe("b", tmp_path, **{"records.paths": [str(records)]})
    exact, sampled = plan_recipe(recipe), plan_recipe(recipe, sample=48)
    assert (exact.num_records, exact.num_sampled, sampled.num_sampled) == (96, 96, 48)
    got, want = sampled.rows[0], exact.rows[0]
    assert got.counts.stored.num_views == want.counts.stored.num_views
    assert got.counts.num_shards == want.counts.num_shards
    assert got.counts.stored.num_masked == pytest.approx(
        want.counts.stored.num_masked, rel=_SAMPLED
    )
    assert got.teacher_tokens == pytest.approx(want.teacher_tokens, rel=_SAMPLED)
    assert got.num_bytes == pytest.approx(want.num_bytes, rel=_SAMPLED)
    assert plan_json(plan_recipe(recipe, sample=48)) == plan_json(sampled), "the sample is seeded"
    reserving = make_recipe("b", tmp_path, **{"records.paths": [str(records)], "targets": SKETCH})
    got, want = (plan_recipe(reserving, sample=n).rows[0].counts for n in (48, 96))
    assert got.calibration_tokens == pytest.approx(want.calibration_tokens, rel=2 * _SAMPLED)


def test_records_that_cannot_be_used_are_planned_as_skips(tiny, make_recipe, tmp_path):
    good = tiny.records.read_text(encoding="utf-8")
    records = tmp_path / "some.jsonl"
    empty = '{"id": "e", "messages": [{"role": "user", "content": "x"}, '
    empty += '{"role": "assistant", "content": " "}]}\n'
    records.write_text(good + "{broken\n" + empty, encoding="utf-8")
    recipe = make_recipe("a", tmp_path, **{"records.paths": [str(records)]})
    planned = plan_recipe(recipe).rows[0].counts.stored
    assert planned == run_teacher_cache(recipe).counts
    assert sum(planned.skips.values()) == 2


def test_the_student_reads_both_halves_of_every_view_of_every_epoch(make_recipe, tmp_path):
    recipe = make_recipe("a", tmp_path, **{"train.max_steps": None, "train.epochs": 3})
    plan = plan_recipe(recipe)
    views, per_epoch = 24, plan.rows[0].counts.student_tokens
    assert (plan.student.views, plan.student.steps) == (3 * views, 3 * views // 4)
    assert plan.student.tokens == 3 * per_epoch
    shorter = plan_recipe(make_recipe("a", tmp_path, **{"train.max_steps": 2})).student
    assert (shorter.views, shorter.steps) == (8, 2)
    assert shorter.tokens == round(per_epoch * 8 / views)


def test_what_cannot_be_planned_is_refused_as_a_run_would_refuse_it(make_recipe, tmp_path):
    greedy = make_recipe("b", tmp_path, targets={"type": "tokens"})
    with pytest.raises(RecipeError, match="expected fewer targets"):
        plan_recipe(greedy)
    with pytest.raises(TeacherError, match=r"expected a config\.json at"):
        plan_recipe(make_recipe("b", tmp_path, **{"teacher.model": str(tmp_path / "nobody")}))
    with pytest.raises(RecipeError, match="expected a sample of 1 record or more"):
        plan_recipe(make_recipe("b", tmp_path), sample=0)


def recipe_file(recipe, path: Path) -> str:
    """As TOML: every value of a recipe's JSON is also TOML's, but null."""

    def inline(value) -> str:
        if isinstance(value, dict):
            inner = ", ".join(f"{k} = {inline(v)}" for k, v in value.items())
            return f"{{{inner}}}"
        return json.dumps(value)

    fields = recipe.model_dump(mode="json", exclude_none=True)
    path.write_text("".join(f"{name} = {inline(value)}\n" for name, value in fields.items()))
    return str(path)


def test_the_command_shows_the_plan(make_recipe, tmp_path):
    recipe = make_recipe("b", tmp_path)
    file = recipe_file(recipe, tmp_path / "recipe.toml")
    result = CliRunner().invoke(app, ["plan", file])
    assert result.exit_code == 0, result.output
    row = plan_recipe(recipe).rows[0]
    assert "all 12 records read, every mask drawn: the counts are exact" in result.stdout
    for number in (row.counts.stored.num_masked, row.num_bytes, row.teacher_tokens):
        assert f"{number:,}" in result.stdout
    assert "twice the views" in result.stdout
    assert "--measure" in result.stdout, "how to get the hours"
    told = CliRunner().invoke(app, ["plan", file, "--tokens-per-second", "1000", "--sample", "6"])
    assert "6 of 12 records read, and scaled up" in told.stdout
    assert "--measure" not in told.stdout


def test_the_command_prints_json(make_recipe, tmp_path):
    file = recipe_file(make_recipe("a", tmp_path), tmp_path / "recipe.toml")
    arguments = ["plan", file, "--json", "--set", "noise.views=3", "--tokens-per-second", "100"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["settings"][0]["num_views"] == 36
    assert plan["settings"][0]["hours"] == pytest.approx(
        plan["settings"][0]["teacher_tokens"] / 100 / 3600
    )
    assert plan["used"] is None
    assert plan["is_exact"]


def test_the_command_refuses_what_makes_no_sense(make_recipe, tmp_path):
    file = recipe_file(make_recipe("a", tmp_path), tmp_path / "recipe.toml")
    for arguments in (
        ("--tokens-per-second", "-1"),
        ("--tokens-per-second", "9", "--measure", "2"),
        ("--sample", "0"),
        ("--set", "noise.views=0"),
    ):
        assert CliRunner().invoke(app, ["plan", file, *arguments]).exit_code == 2
