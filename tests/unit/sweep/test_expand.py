"""Which runs a sweep has, what they are called, and what is refused before any is trained."""

from pathlib import Path

import pytest

from pipeline.config.recipe import load_recipe
from pipeline.config.sweep import load_sweep
from pipeline.sweep.names import name_of
from storage_schemas.errors import RecipeError

OBJECTIVES = """
grid.train.seed = [0, 1]

[[runs]]
name = "ce"
set = {objective.type = "masked_nll"}

[[runs]]
name = "calm"
set = {"objective.type" = "calm"}
grid = {"objective.temperature" = [1.0, 2.5]}
"""


def test_a_grid_is_every_combination_in_order(expand):
    runs = expand("grid = {objective.temperature = [1.0, 5.0], train.learning_rate = [1e-4, 3e-5]}")
    assert [run.name for run in runs] == [
        "temperature=1,learning_rate=0.0001",
        "temperature=1,learning_rate=3e-05",
        "temperature=5,learning_rate=0.0001",
        "temperature=5,learning_rate=3e-05",
    ]
    assert [(r.recipe.objective.temperature, r.recipe.train.learning_rate) for r in runs] == [
        (1.0, 1e-4),
        (1.0, 3e-5),
        (5.0, 1e-4),
        (5.0, 3e-5),
    ]


def test_each_of_the_runs_has_knobs_of_its_own_beside_the_grid_of_all(expand):
    runs = expand(OBJECTIVES)
    assert [run.name for run in runs] == [
        "ce,seed=0",
        "ce,seed=1",
        "calm,temperature=1,seed=0",
        "calm,temperature=1,seed=1",
        "calm,temperature=2.5,seed=0",
        "calm,temperature=2.5,seed=1",
    ]
    assert [run.recipe.objective.type for run in runs] == ["masked_nll"] * 2 + ["calm"] * 4
    assert [run.recipe.train.seed for run in runs] == [0, 1] * 3


def test_an_item_that_is_a_table_sets_its_keys_together(expand):
    calm, ce = expand('grid.objective = [{type = "calm", temperature = 2.0}, {type="masked_nll"}]')
    assert (calm.name, ce.name) == ("calm,temperature=2", "masked_nll")
    assert calm.recipe.objective.model_dump() == {"type": "calm", "temperature": 2.0, "weight": 1.0}


def test_every_run_has_its_own_folder_under_the_output(expand, tmp_path):
    runs = expand(OBJECTIVES)
    places = [Path(run.recipe.train.output) for run in runs]
    assert places == [tmp_path / "sweep" / "runs" / run.name for run in runs]


def test_what_is_set_for_all_gives_way_to_what_a_run_sets(expand):
    plain, long = expand("""
        set.train.max_steps = 7
        [[runs]]
        name = "plain"
        [[runs]]
        name = "long"
        set.train.max_steps = 9
    """)
    assert (plain.recipe.train.max_steps, long.recipe.train.max_steps) == (7, 9)
    assert plain.name == "plain"  # what holds for all is in no name


def test_a_name_stays_when_the_sweep_grows(expand):
    few = expand("grid = {train.seed = [0]}")
    more = expand("grid = {train.seed = [1, 0]}\nset = {train.epochs = 3}")
    assert few[0].name == more[1].name == "seed=0"


def test_the_overrides_make_the_same_recipe_on_a_command_line(expand, tmp_path):
    text = OBJECTIVES + '[[runs]]\nname = "odd"\nset = {student.model = "Köln \\" = 😀"}\n'
    for run in expand(text):
        assert load_recipe(tmp_path / "recipe.toml", run.overrides) == run.recipe


def test_a_name_that_no_folder_can_have_is_cut_and_kept_apart():
    names = [name_of({"student.model": model}) for model in ("org/a", "org:a", "x" * 300)]
    assert names[0].startswith("model=org-a-")
    assert len(set(names)) == 3
    assert all("/" not in name and len(name) < 120 for name in names)


def test_two_keys_of_one_last_part_are_written_out():
    assert name_of({"a.weight": 1.0, "b.weight": True}) == "a.weight=1,b.weight=true"


@pytest.mark.parametrize(
    "key",
    ["noise.views", "targets.k", "cache.path", "records.paths", "teacher.dtype", "pipeline.type"],
)
@pytest.mark.parametrize("where", ["set", "grid", "run"])
def test_settings_of_stage_1_are_refused(expand, key, where):
    text = {
        "set": f"set = {{{key} = 1}}\ngrid = {{train.seed = [0]}}",
        "grid": f"grid = {{{key} = [1, 2]}}",
        "run": f'[[runs]]\nname = "a"\nset = {{{key} = 1}}',
    }[where]
    with pytest.raises(RecipeError, match=rf"{key}: \[\w+\] belongs to stage 1"):
        expand(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid = {train.output = ['a']}", "a folder of its own"),
        ("grid = {held_out.max_records = [3]}", "the same held-out records"),
        ("grid = {train.seed = 3}", "train.seed: expected a list of values to go through, got 3"),
        ("grid = {train.seed = []}", "expected a list of values"),
        ("grid = {train.seed = [1, 1]}", "runs are called 'seed=1'"),
        ("grid = {train.seed = [1, 1]}", "runs 'seed=1', 'seed=1' have the same recipe"),
        ("grid = {objective.temperature = [1.0, 1]}", "have the same recipe"),
        ("grid = {train.device = [2020-01-01]}", "expected a number, a word or a list"),
        (
            '[[runs]]\nname = "a"\n[[runs]]\nname = "b"\nset.objective.temperature = 5.0',
            "runs 'a', 'b' have the same recipe",
        ),
        (
            'grid.train.seed = [1]\n[[runs]]\nname = "a"\nset.train.seed = 2',
            "train.seed: expected in one place, got it in the grid and the set of run 'a'",
        ),
    ],
)
def test_what_makes_no_comparison_is_refused(expand, text, message):
    with pytest.raises(RecipeError) as error:
        expand(text)
    assert message in str(error.value)


def test_every_mistake_of_every_run_is_in_one_error(expand):
    with pytest.raises(RecipeError) as error:
        expand("""
            grid.objective.type = ["masked_nll", "calm", "forward_kl"]
            grid.objective.temperature = [1.0]
            grid.train.epochs = [1, -1]
        """)
    lines = str(error.value).split("\n  ")[1:]
    assert len(lines) == 3, lines
    assert lines[0] == (
        "runs 'masked_nll,temperature=1,epochs=1', 'masked_nll,temperature=1,epochs=-1': "
        "objective.temperature: no such setting here; remove it, or check its spelling; "
        "what not every objective has goes into the grid of a [[runs]] of its own"
    )
    assert "epochs=-1': train.epochs: Input should be greater than 0, got -1" in lines[1]
    assert "compares distributions over tokens" in lines[2]


def test_a_mistake_in_the_recipe_itself_is_said_once(expand, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("cache = ", "cash = "))
    with pytest.raises(RecipeError) as error:
        expand("grid = {train.seed = [0, 1]}")
    assert str(error.value).split("\n  ")[1:] == [
        "all 2 runs: cache: Field required",
        "all 2 runs: cash: no such setting here; remove it, or check its spelling",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('output = "x"', "recipe: Field required"),
        ('recipe = "r"\noutput = "x"', "sweep: expected a [grid] or [[runs]], got neither"),
        ('recipe = "r"\noutput = "x"\n[[runs]]\nname = "a/b"', "runs.0.name: String should match"),
        ('recipe = "r"\noutput = "x"\nseeds = [1]', "seeds: no such setting here"),
        ("recipe = ", "expected a readable TOML file"),
    ],
)
def test_a_sweep_that_cannot_be_read_says_where(tmp_path, text, message):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_sweep(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_sweep_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(RecipeError, match="expected a sweep"):
        load_sweep(tmp_path / "no.toml")


def test_a_mistake_of_many_runs_names_a_few(expand):
    with pytest.raises(RecipeError, match=r"^[^\n]*\n  runs 'a,seed=0', .* and 5 more: objective"):
        expand("""
            grid.train.seed = [0, 1, 2, 3, 4, 5, 6, 7, 8]
            [[runs]]
            name = "a"
            set.objective.temprature = 2.0
            [[runs]]
            name = "b"
        """)
