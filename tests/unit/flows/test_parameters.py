"""Parameters of the flows: what a form offers is what a recipe takes."""

from typing import get_args

from flows.parameters import Objective, as_overrides
from pipeline.config.objective import ChunkObjective, MaskedNll, TokenObjective
from pipeline.config.recipe import parse_recipe


def test_a_form_offers_every_objective():
    kinds = (MaskedNll, *get_args(ChunkObjective), *get_args(TokenObjective))
    types = {get_args(kind.model_fields["type"].annotation)[0] for kind in kinds}
    offered, nothing = get_args(Objective)
    assert set(get_args(offered)) == types
    assert nothing is type(None)


def test_what_is_given_becomes_overrides_that_a_recipe_reads_as_it_was_given():
    odd = 'runs/"ä😀\\n= 1.toml'
    assert as_overrides(train__output=odd, train__seed=None, train__epochs=2.5)[1:] == (
        "train.epochs=2.5",
    )
    fields = {
        "pipeline": {"type": "cross_tokenizer"},
        "records": {"type": "files", "paths": ["a.jsonl"]},
        "student": {"model": "s", "length": 64, "block_size": 16},
        "teacher": {"model": "t", "length": 64, "dtype": "float32", "attention": {"type": "full"}},
        "noise": {"views": 1},
        "targets": {"type": "chunks"},
        "cache": {"path": "c"},
        "objective": {"type": "calm", "temperature": 1.0, "weight": 3.0},
        "train": {"output": "o"},
    }
    overrides = as_overrides(objective__temperature=4, objective__type="reverse_calm")
    overrides += as_overrides(train__output=odd)
    recipe = parse_recipe(fields, where="here", overrides=overrides)
    assert recipe.train.output == odd
    objective = recipe.objective.model_dump()
    assert objective["type"] == "reverse_calm"
    assert (objective["temperature"], objective["weight"]) == (4.0, 1.0)
