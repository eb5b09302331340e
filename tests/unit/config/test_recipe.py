"""Recipes: what loads, what is refused and where it says so, overrides, and the resolved JSON."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.base import StrictModel
from pipeline.config.cache import CompDemoConfig, SketchTailConfig, TokenTargetsConfig
from pipeline.config.objective import Calm, CalmTidal, ReverseCalm, TidalConfig
from pipeline.config.recipe import Recipe, load_recipe, parse_recipe, resolved_json
from pipeline.config.records import FilesSource, PromptAndResponseFields
from pipeline.teacher.families import family_named
from storage_schemas.errors import RecipeError

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "flows" / "recipes").glob("**/*.toml"))

CROSS = """
[pipeline]
type = "cross_tokenizer"

[records]
type = "files"
paths = ["train.jsonl"]

[student]
model = "student"
length = 64
block_size = 16

[teacher]
model = "teacher"
attention.type = "full"

[targets]
type = "chunks"

[cache]
path = "cache"

[objective]
type = "reverse_calm"

[train]
output = "out"
"""
SHARED = {
    "pipeline": {"type": "shared_tokenizer", "vocab": 1000},
    "targets": {"type": "tokens", "k": 8, "temperatures": [1.0, 2.0]},
    "objective": {"type": "forward_kl"},
}

TIDAL: tuple[dict[str, Any], ...] = (
    {},
    {"axes": "timestep"},
    {"axes": "timestep", "lambda_max": 0.5, "timestep_weight": "uniform"},
    {"axes": "training", "growth": "linear", "lambda_init": 0.0},
)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "masked_nll": {"type": "masked_nll"},
    "calm": {"type": "calm", "temperature": 1.0, "weight": 0.5},
    "reverse_calm": {"type": "reverse_calm"},
    "forward_kl": {"type": "forward_kl"},
    "reverse_kl": {"type": "reverse_kl"},
    **{f"calm_tidal_{i}": {"type": "calm_tidal", "tidal": each} for i, each in enumerate(TIDAL)},
    **{f"tidal_kl_{i}": {"type": "tidal_kl", "tidal": each} for i, each in enumerate(TIDAL)},
    **{
        f"{name}_{axes}": {
            "type": name,
            "tidal_against_reverse": True,
            "tidal": {"axes": axes},
        }
        for name in ("reverse_calm", "reverse_kl")
        for axes in ("both", "timestep")
    },
}


@pytest.fixture
def cross(tmp_path: Path) -> Path:
    """The recipe of pipeline A above, as a file."""
    path = tmp_path / "recipe.toml"
    path.write_text(CROSS)
    return path


def _fields(**tables: Any) -> dict[str, Any]:
    """A recipe of pipeline B; `tables` replace whole tables."""
    plain: dict[str, Any] = {
        "records": {"type": "files", "paths": ["train.jsonl"]},
        "student": {"model": "student"},
        "teacher": {"model": "teacher", "attention": {"type": "block"}},
        "cache": {"path": "cache"},
        "train": {"output": "out"},
    }
    return {**plain, **SHARED, **tables}


def _recipe(**tables: Any) -> Recipe:
    return parse_recipe(_fields(**tables), where="here.toml")


def _mistakes(fields: dict[str, Any]) -> dict[str, str]:
    """Dotted place -> what is wrong there."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(fields, where="here.toml")
    first, *lines = str(caught.value).split("\n")
    assert first == "here.toml: the recipe cannot be used:"
    assert isinstance(caught.value, ValueError)
    found = dict(line.strip().split(": ", 1) for line in lines)
    assert len(found) == len(lines), "a place is named twice"
    return found


# What loads


def _is_unpinned(path: Path) -> bool:
    """Runs code of others, at a commit that only its user can have chosen."""
    teacher = tomllib.loads(path.read_text())["teacher"]
    return "trust_remote_code" in teacher and "revision" not in teacher


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_of_the_repository_loads(path: Path):
    pin = [f"teacher.revision={'0' * 40}"] if _is_unpinned(path) else []
    recipe = load_recipe(path, pin)
    assert parse_recipe(json.loads(resolved_json(recipe)), where=path.name) == recipe
    assert recipe.teacher.attention.type in family_named(recipe.teacher.family).attentions


UNPINNED = [path for path in RECIPES if _is_unpinned(path)]


@pytest.mark.parametrize("path", UNPINNED, ids=[path.stem for path in UNPINNED])
def test_a_recipe_that_runs_code_of_others_says_how_to_pin_it(path: Path):
    with pytest.raises(RecipeError, match=r"teacher: .*needs a pinned revision.*model_info\('"):
        load_recipe(path)


def _stage_1(path: Path) -> dict[str, Any]:
    fields = json.loads(resolved_json(load_recipe(path, [f"teacher.revision={'0' * 40}"])))
    return {key: fields[key] for key in fields.keys() - {"objective", "train"}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tide_cross_llada2", "calm_cross_llada2"),
        ("kl_shared_wedlm", "reverse_kl_shared_wedlm"),
    ],
)
def test_recipes_that_name_one_cache_ask_for_the_same_one(one: str, other: str):
    folder = ROOT / "flows" / "recipes"
    assert _stage_1(folder / f"{one}.toml") == _stage_1(folder / f"{other}.toml")


def test_a_short_recipe_gets_the_papers_defaults(cross: Path):
    recipe = load_recipe(cross)
    assert isinstance(recipe.objective, ReverseCalm)
    assert (recipe.objective.temperature, recipe.objective.weight) == (2.0, 1.0)
    assert (recipe.noise.eps, recipe.noise.compdemo) == (1e-3, None)
    assert (recipe.train.learning_rate, recipe.train.epochs) == (5e-5, 10)
    assert (recipe.train.schedule, recipe.train.warmup_share) == ("cosine", 0.1)
    assert TidalConfig().lambda_init == 0.1
    assert TidalConfig().lambda_max == 0.9
    assert TidalConfig().timestep_weight == "midrange"
    assert CompDemoConfig().ratio == 0.5


def test_without_an_objective_the_control_is_trained():
    fields = _fields()
    del fields["objective"]
    assert parse_recipe(fields, where="here.toml").objective.type == "masked_nll"


@pytest.mark.parametrize(
    ("attention", "expected"),
    [({"type": "full"}, None), ({"type": "block"}, 32), ({"type": "block", "block_size": 8}, 8)],
    ids=["full", "block", "block_of_8"],
)
def test_only_a_block_wise_teacher_has_a_block_size(
    attention: dict[str, Any], expected: int | None
):
    recipe = _recipe(teacher={"model": "teacher", "attention": attention})
    assert recipe.teacher_block_size == expected


def test_a_recipe_never_changes(cross: Path):
    recipe = load_recipe(cross)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def _models(base: type[StrictModel] = StrictModel) -> list[type[StrictModel]]:
    return [each for child in base.__subclasses__() for each in (child, *_models(child))]


@pytest.mark.parametrize("model", sorted(set(_models()), key=str), ids=lambda model: model.__name__)
def test_every_part_of_a_recipe_is_frozen_and_refuses_unknown_keys(model: type[StrictModel]):
    assert model.model_config.get("frozen") is True
    assert model.model_config.get("extra") == "forbid"


# The resolved recipe


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_resolved_recipe_reads_back_as_the_same(objective: dict[str, Any]):
    recipe = _recipe(objective=objective)
    again = parse_recipe(json.loads(resolved_json(recipe)), where="recipe.json")
    assert again == recipe
    assert resolved_json(again) == resolved_json(recipe)


@settings(max_examples=50, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(-5, 2**40),
            "views": st.integers(1, 99),
            "eps": st.floats(0, 1, exclude_min=True, exclude_max=True),
            "compdemo": st.fixed_dictionaries({"ratio": st.floats(0.01, 0.99)}),
        },
    )
)
def test_any_noise_survives_the_resolved_recipe(noise: dict[str, Any]):
    recipe = _recipe(noise=noise)
    assert parse_recipe(json.loads(resolved_json(recipe)), where="recipe.json") == recipe


def test_the_resolved_recipe_writes_out_every_default_that_has_an_effect():
    resolved = json.loads(resolved_json(_recipe(objective={"type": "tidal_kl"})))
    assert resolved.keys() == Recipe.model_fields.keys()
    assert resolved["noise"] == {
        "compdemo": None,
        "eps": 0.001,
        "seed": 0,
        "times": "stratified",
        "views": 16,
    }
    assert resolved["objective"]["tidal"].keys() == TidalConfig.model_fields.keys()


def test_the_resolved_recipe_leaves_out_what_has_no_effect():
    timestep = {"type": "tidal_kl", "tidal": {"axes": "timestep"}}
    resolved = json.loads(resolved_json(_recipe(objective=timestep)))
    assert resolved["objective"]["tidal"].keys() == {"axes", "lambda_max", "timestep_weight"}
    reverse = {"type": "reverse_kl", "tidal": {}, "tidal_against_reverse": True}
    resolved = json.loads(resolved_json(_recipe(objective=reverse)))
    assert "timestep_weight" not in resolved["objective"]["tidal"]


# Mistakes


@pytest.mark.parametrize(
    ("place", "table"),
    [
        ("zzz", {"zzz": 1}),
        ("noise.sed", {"noise": {"sed": 1}}),
        ("noise.compdemo.rate", {"noise": {"compdemo": {"rate": 0.5}}}),
        ("student.family", {"student": {"model": "s", "family": "native"}}),
        ("targets.topk", {"targets": {"type": "tokens", "topk": 4}}),
        ("objective.tidal", {"objective": {"type": "forward_kl", "tidal": {}}}),
        ("objective.temperature", {"objective": {"type": "masked_nll", "temperature": 2.0}}),
        ("objective.tidal.max", {"objective": {"type": "tidal_kl", "tidal": {"max": 1}}}),
        (
            "records.fields.prompt_field",
            {
                "records": {
                    "type": "files",
                    "paths": ["a"],
                    "fields": {"type": "messages", "prompt_field": "p"},
                }
            },
        ),
        (
            "teacher.attention.block_size",
            {"teacher": {"model": "t", "attention": {"type": "full", "block_size": 4}}},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_key_is_named_by_its_place_in_the_file(place: str, table: dict[str, Any]):
    assert _mistakes(_fields(**table)) == {
        place: "no such setting here; remove it, or check its spelling"
    }


@pytest.mark.parametrize(
    ("place", "message", "table"),
    [
        (
            "objective.tidal",
            "without effect where axes = 'timestep': growth",
            {"objective": {"type": "tidal_kl", "tidal": {"axes": "timestep", "growth": "cosine"}}},
        ),
        (
            "objective.tidal",
            "without effect where axes = 'timestep': growth, lambda_init",
            {
                "objective": {
                    "type": "calm_tidal",
                    "tidal": {"axes": "timestep", "lambda_init": 0.1, "growth": "linear"},
                }
            },
        ),
        (
            "objective",
            "tidal_against_reverse has no effect without [objective.tidal]",
            {"objective": {"type": "reverse_calm", "tidal_against_reverse": True}},
        ),
        (
            "objective",
            "tidal.timestep_weight has no effect in a reverse objective",
            {
                "objective": {
                    "type": "reverse_kl",
                    "tidal_against_reverse": True,
                    "tidal": {"timestep_weight": "midrange"},
                }
            },
        ),
    ],
    ids=["growth", "growth_and_init", "flag", "timestep_weight"],
)
def test_a_setting_without_effect_is_refused(place: str, message: str, table: dict[str, Any]):
    assert _mistakes(_fields(**table)) == {place: message}


@pytest.mark.parametrize(
    ("place", "message", "table"),
    [
        ("student", "whole blocks of 32, got 40", {"student": {"model": "s", "length": 40}}),
        (
            "teacher",
            "whole blocks of 32, got 40",
            {"teacher": {"model": "t", "length": 40, "attention": {"type": "block"}}},
        ),
        (
            "teacher",
            "needs a pinned revision",
            {"teacher": {"model": "t", "trust_remote_code": True, "attention": {"type": "full"}}},
        ),
        (
            "targets",
            "expected 1.0 among the temperatures, got [2.0]",
            {"targets": {"type": "tokens", "temperatures": [2.0]}},
        ),
        (
            "targets",
            "each temperature once",
            {"targets": {"type": "tokens", "temperatures": [1.0, 2.0, 1]}},
        ),
        ("noise.eps", "got nan", {"noise": {"eps": float("nan")}}),
        ("train.epochs", "finite", {"train": {"output": "o", "epochs": float("inf")}}),
        ("train.weight_decay", "finite", {"train": {"output": "o", "weight_decay": float("inf")}}),
        (
            "objective.temperature",
            "finite",
            {"objective": {"type": "calm", "temperature": float("inf")}},
        ),
        (
            "objective.type",
            "expected one of 'masked_nll', 'calm'",
            {"objective": {"type": "reverse-calm"}},
        ),
        ("objective.type", "Field required", {"objective": {"temperature": 1.0}}),
        (
            "teacher.attention.type",
            "got 'causal'",
            {"teacher": {"model": "t", "attention": {"type": "causal"}}},
        ),
        ("records.paths.1", "got 3", {"records": {"type": "files", "paths": ["a", 3]}}),
        ("objective", "got 3", {"objective": 3}),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_its_place(
    place: str, message: str, table: dict[str, Any]
):
    found = _mistakes(_fields(**table))
    assert found.keys() == {place}
    assert message in found[place]


def test_every_mistake_is_named_in_one_error():
    fields = _fields(
        noise={"views": 0, "sed": 1},
        records={"type": "files", "paths": []},
        targets={"type": "tokens", "k": -1},
        objective={"type": "reverse_calm", "tidal": {}},
        surplus=1,
    )
    del fields["student"], fields["train"]
    assert _mistakes(fields).keys() == {
        "records.paths",
        "student",
        "noise.views",
        "noise.sed",
        "targets.k",
        "objective",
        "train",
        "surplus",
    }


def test_every_misfit_of_two_tables_is_named_in_one_error():
    found = _mistakes(
        _fields(
            targets={"type": "tokens", "k": 1001},
            objective={"type": "forward_kl", "temperature": 3.0},
        )
    )
    assert "expected targets.k <= pipeline.vocab = 1000" in found["recipe"]
    assert "objective.temperature = 3.0 is not among the cached" in found["recipe"]


# What is kept of the tail


def _targets(**fields: Any) -> dict[str, Any]:
    return {"type": "tokens", **fields}


def test_without_a_tail_a_sketch_is_kept_whose_gradient_error_is_0_15():
    targets = _recipe(targets=_targets()).targets
    assert isinstance(targets, TokenTargetsConfig)
    assert (targets.k, targets.temperatures) == (8, (1.0, 2.0))
    assert isinstance(targets.tail, SketchTailConfig)
    assert targets.tail.asked == ("grad_error", 0.15)
    assert (targets.tail.rank, targets.tail.calibration_records) == (None, 256)
    named = _recipe(targets=_targets(tail={"type": "sketch", "grad_error": 0.15})).targets
    assert isinstance(named, TokenTargetsConfig)
    assert isinstance(named.tail, SketchTailConfig)
    assert named.tail.asked == targets.tail.asked


def test_chunks_keep_a_top_k_to_look_at_or_none():
    targets = _recipe(targets={"type": "chunks"}, objective={"type": "calm"}).targets
    assert targets.k == 8
    targets = _recipe(targets={"type": "chunks", "k": 0}, objective={"type": "calm"}).targets
    assert targets.k == 0


@pytest.mark.parametrize(
    ("name", "amount"), [("grad_error", 0.3), ("bytes", 100.0), ("step", 0.105)]
)
def test_a_sketch_is_asked_for_by_one_of_three(name: str, amount: float):
    recipe = _recipe(targets=_targets(tail={"type": "sketch", name: amount}))
    assert isinstance(recipe.targets, TokenTargetsConfig)
    assert isinstance(recipe.targets.tail, SketchTailConfig)
    assert recipe.targets.tail.asked == (name, amount)
    again = parse_recipe(json.loads(resolved_json(recipe)), where="recipe.json")
    assert again == recipe


@pytest.mark.parametrize(
    "asked",
    [
        {"grad_error": 0.2, "bytes": 100},
        {"bytes": 100, "step": 0.1},
        {"grad_error": 0.15, "bytes": 100, "step": 0.1},
    ],
)
def test_a_sketch_is_not_asked_for_twice(asked: dict[str, float]):
    found = _mistakes(_fields(targets=_targets(tail={"type": "sketch", **asked})))
    assert found == {"targets.tail": "expected one of grad_error, bytes and step, got more"}


@pytest.mark.parametrize(
    ("place", "tail"),
    [
        ("targets.tail.grad_error", {"type": "sketch", "grad_error": 1.0}),
        ("targets.tail.grad_error", {"type": "sketch", "grad_error": 0}),
        ("targets.tail.bytes", {"type": "sketch", "bytes": 0}),
        ("targets.tail.step", {"type": "sketch", "step": float("inf")}),
        ("targets.tail.rank", {"type": "sketch", "rank": 0}),
        ("targets.tail.calibration_records", {"type": "sketch", "calibration_records": 0}),
        ("targets.tail.calibration_records", {"type": "mean_logit", "calibration_records": 0}),
        ("targets.tail.calibration_records", {"type": "even", "calibration_records": 9}),
        ("targets.tail.step", {"type": "mean_logit", "step": 0.1}),
        ("targets.tail.type", {"type": "sampled"}),
    ],
)
def test_a_tail_that_cannot_be_is_refused_at_its_place(place: str, tail: dict[str, Any]):
    assert _mistakes(_fields(targets=_targets(tail=tail))).keys() == {place}


@pytest.mark.parametrize("tail", ["even", "mean_logit"])
def test_only_a_sketch_does_without_a_top_k(tail: str):
    found = _mistakes(_fields(targets=_targets(k=0, tail={"type": tail})))
    assert found == {"targets": f"expected k > 0 with tail.type = {tail!r}, got 0"}
    recipe = _recipe(targets=_targets(k=0, tail={"type": "sketch", "step": 0.1}))
    assert recipe.targets.k == 0


@pytest.mark.parametrize("tail", ["sketch", "mean_logit"])
def test_a_tail_where_nothing_is_left_out_is_refused(tail: str):
    found = _mistakes(_fields(targets=_targets(k=1000, tail={"type": tail})))
    assert found["recipe"].startswith(f"targets.tail of type {tail!r} has no effect")
    _recipe(targets=_targets(k=1000, tail={"type": "even"}))
    _recipe(targets=_targets(k=999, tail={"type": tail}))


def test_a_tail_may_be_asked_for_on_the_command_line(cross: Path):
    text = CROSS.replace('type = "cross_tokenizer"', 'type = "shared_tokenizer"\nvocab = 1000')
    cross.write_text(text)
    recipe = load_recipe(
        cross, ["targets.tail.bytes=90", "targets.tail.type=sketch", "targets.type=tokens"]
    )
    assert isinstance(recipe.targets, TokenTargetsConfig)
    assert isinstance(recipe.targets.tail, SketchTailConfig)
    assert recipe.targets.tail.asked == ("bytes", 90.0)


# TIDAL with a reverse objective


@pytest.mark.parametrize("objective", ["reverse_calm", "reverse_kl"])
def test_tidal_with_a_reverse_objective_is_refused_once_with_the_reason(objective: str):
    fields = _fields(objective={"type": objective, "tidal": {}})
    reason = _mistakes(fields)["objective"]
    assert "TIDAL works against a reverse objective" in reason
    assert "self-selection" in reason
    assert "tidal_against_reverse = true" in reason
    fields["objective"]["tidal_against_reverse"] = True
    accepted = parse_recipe(fields, where="here.toml").objective
    assert getattr(accepted, "tidal", None) == TidalConfig()


# Objectives, pipelines and caches that do not fit


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "tidal_kl"])
@pytest.mark.parametrize(
    "targets", [{"type": "chunks"}, SHARED["targets"]], ids=["chunks", "tokens"]
)
def test_a_token_objective_is_refused_across_tokenizers(objective: str, targets: dict[str, Any]):
    found = _mistakes(
        _fields(
            pipeline={"type": "cross_tokenizer"}, objective={"type": objective}, targets=targets
        )
    )
    assert f"{objective!r} compares distributions over tokens" in found["recipe"]
    assert "reverse_calm" in found["recipe"]


@pytest.mark.parametrize("objective", ["calm", "reverse_calm", "calm_tidal", "masked_nll"])
@pytest.mark.parametrize(
    "pipeline", [{"type": "cross_tokenizer"}, SHARED["pipeline"]], ids=["cross", "shared"]
)
def test_chunk_objectives_need_neither_a_shared_tokenizer_nor_distributions(
    objective: str, pipeline: dict[str, Any]
):
    recipe = _recipe(pipeline=pipeline, objective={"type": objective}, targets={"type": "chunks"})
    assert recipe.objective.type == objective


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "tidal_kl"])
def test_a_token_objective_needs_distributions_in_the_cache(objective: str):
    found = _mistakes(_fields(objective={"type": objective}, targets={"type": "chunks"}))
    assert "set targets.type = 'tokens'" in found["recipe"]


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "tidal_kl"])
def test_a_temperature_that_is_not_cached_is_refused(objective: str):
    found = _mistakes(_fields(objective={"type": objective, "temperature": 5.0}))
    assert "objective.temperature = 5.0" in found["recipe"]
    assert "[1.0, 2.0]" in found["recipe"]
    _recipe(
        objective={"type": objective, "temperature": 5.0},
        targets={"type": "tokens", "temperatures": [1, 5]},
    )


def test_a_chunk_objective_takes_any_temperature():
    assert _recipe(objective={"type": "reverse_calm", "temperature": 5.0})


# Overrides


def test_an_override_sets_one_key_and_its_value_is_toml(cross: Path):
    recipe = load_recipe(
        cross,
        ["noise.views=7", "train.packing=true", "train.learning_rate=1e-4"],
    )
    assert recipe.noise.views == 7
    assert recipe.train.packing is True
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.output == "out"


def test_a_bare_word_is_a_string(cross: Path):
    recipe = load_recipe(cross, ["student.model=Qwen/Qwen3-0.6B", 'teacher.model="quoted"'])
    assert recipe.student.model == "Qwen/Qwen3-0.6B"
    assert recipe.teacher.model == "quoted"


def test_a_value_may_hold_an_equals_sign_or_look_like_a_type(cross: Path):
    recipe = load_recipe(cross, ["cache.path=s3://bucket/a.type=calm"])
    assert recipe.cache.path == "s3://bucket/a.type=calm"


def test_an_override_makes_the_tables_that_it_needs(cross: Path):
    recipe = load_recipe(cross, ["noise.compdemo.ratio=0.25", "records.paths=['a', 'b']"])
    assert recipe.noise.compdemo == CompDemoConfig(ratio=0.25)
    assert isinstance(recipe.records, FilesSource)
    assert recipe.records.paths == ("a", "b")


def test_another_type_starts_its_table_anew(cross: Path):
    cross.write_text(
        CROSS.replace(
            'type = "reverse_calm"',
            'type = "reverse_calm"\ntemperature = 5.0\ntidal_against_reverse = true\ntidal = {}',
        )
    )
    assert load_recipe(cross, ["objective.type=calm"]).objective == Calm(type="calm")


def test_the_type_that_is_there_already_clears_nothing(cross: Path):
    cross.write_text(CROSS.replace('"reverse_calm"', '"reverse_calm"\ntemperature = 5.0'))
    (kept,) = {load_recipe(cross, ["objective.type=reverse_calm"]).objective}
    assert kept == ReverseCalm(type="reverse_calm", temperature=5.0)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.type=calm_tidal", "objective.temperature=3.0", "objective.tidal.growth=linear"],
        ["objective.temperature=3.0", "objective.tidal.growth=linear", "objective.type=calm_tidal"],
        [
            "objective.temperature = 3.0",
            "objective . type = calm_tidal",
            "objective.tidal.growth = linear",
        ],
    ],
    ids=["type_first", "type_last", "spaces"],
)
def test_the_order_of_overrides_does_not_matter(cross: Path, overrides: list[str]):
    assert load_recipe(cross, overrides).objective == CalmTidal(
        type="calm_tidal", temperature=3.0, tidal=TidalConfig(growth="linear")
    )


def test_an_outer_type_does_not_clear_an_inner_one_that_was_asked_for(cross: Path):
    hub = ["records.name=n", "records.revision=main", "records.split=train"]
    inner = [
        "records.fields.type=prompt_and_response",
        "records.fields.prompt_field=q",
        "records.fields.response_field=a",
    ]
    records = load_recipe(cross, [*inner, *hub, "records.type=hub"]).records
    assert records.type == "hub"
    assert records.fields == PromptAndResponseFields(prompt_field="q", response_field="a")


def test_of_two_overrides_of_one_key_the_last_one_holds(cross: Path):
    assert load_recipe(cross, ["noise.views=2", "noise.views=3"]).noise.views == 3


def test_a_type_outside_every_table_is_an_unknown_key(cross: Path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(cross, ["type=calm"])
    _, line = str(caught.value).split("\n")
    assert line.strip().startswith("type: no such setting here")


@pytest.mark.parametrize(
    "override", ["noise.views", "=3", "noise.=3", ".views=3", "", "noise..views=3"]
)
def test_an_override_without_a_key_or_a_value_is_refused(cross: Path, override: str):
    with pytest.raises(RecipeError, match="expected an override like"):
        load_recipe(cross, [override])


def test_an_override_below_a_plain_value_is_refused(cross: Path):
    with pytest.raises(RecipeError, match=r"expected a table at cache\.path, got 'cache'"):
        load_recipe(cross, ["cache.path.name=3"])


def test_an_override_is_checked_like_the_file(cross: Path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(cross, ["noise.views=many"])
    assert str(cross) in str(caught.value)
    assert "noise.views: " in str(caught.value)
    assert "'many'" in str(caught.value)


# Files that are no recipes


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match="got no such file"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"[noise\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"broken\.toml: expected a readable TOML file"):
        load_recipe(path)


def test_a_folder_is_no_recipe(tmp_path: Path):
    with pytest.raises(RecipeError, match="expected a readable TOML file"):
        load_recipe(tmp_path)


# Light imports


def test_recipes_and_schemas_import_without_torch():
    folders = (ROOT / "pipeline" / "config", ROOT / "storage_schemas")
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in folders
        for path in folder.rglob("*.py")
    )
    code = (
        "import sys\n"
        "from importlib import import_module\n"
        "for name in sys.argv[1:]:\n"
        "    import_module(name)\n"
        "heavy = {'torch', 'transformers', 'prefect', 'datasets', 'vllm'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# Workers


def test_workers_need_a_device_that_is_not_one_gpus(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(CROSS)
    workers = ["workers.type=ray", "workers.count=2"]
    recipe = load_recipe(path, workers)
    assert recipe.workers is not None
    assert (recipe.workers.type, recipe.workers.count, recipe.workers.address) == ("ray", 2, None)
    assert load_recipe(path).workers is None
    with pytest.raises(RecipeError, match=r"each of which is given GPUs of its own, got 'cuda:1'"):
        load_recipe(path, [*workers, "teacher.device=cuda:1"])
    with pytest.raises(RecipeError, match=r"workers\.type: expected one of 'dask', 'ray'"):
        load_recipe(path, ["workers.type=slurm", "workers.count=2"])
