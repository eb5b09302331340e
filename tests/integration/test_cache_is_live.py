"""Training from a cache IS training with the teacher in the loop, on the same noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from live import live_reader, train

from pipeline.cache.reader import CacheReader
from pipeline.config.recipe import Recipe
from pipeline.teacher_cache import run_teacher_cache

STEPS = 20
SHARED = 1024  # k = V of these columns: the whole vocabulary would be 30 MiB a shard
SAME_BATCHES, OTHER_BATCHES = 700, 100  # tokens a forward pass of the teacher
FIRST_LOSS, FIRST_GRADIENT = 1e-5, 1e-4  # relative, where the teacher's batches are others


@pytest.fixture(scope="module")
def cached(tiny, tmp_path_factory):
    """The caches, by kind and k (0: chunks alone), as recipes."""
    recipes = {}
    for kind, k in (("b", SHARED), ("a", 0), ("a", 5)):
        targets = (
            {"type": "tokens", "k": k, "logits_dtype": "float32", "tail": {"type": "even"}}
            if k
            else {"type": "chunks", "k": 0}
        )
        overrides = {"pipeline.vocab": SHARED} if kind == "b" else {}
        recipe = tiny.recipe(
            kind,
            tmp_path_factory.mktemp(f"live-{kind}{k}"),
            targets=targets,
            objective={"type": "reverse_calm"},
            **{"teacher.batch_tokens": SAME_BATCHES, "train.batch_size": 4},
            **overrides,
        )
        run_teacher_cache(recipe)
        recipes[kind, k] = recipe
    return recipes


@pytest.fixture(scope="module")
def run(cached, tmp_path_factory):
    """`run(kind, k, objective, batch_tokens)`: live with that many tokens a pass, None: cached."""
    done: dict[tuple, tuple[list[dict[str, float]], torch.Tensor]] = {}

    def runs(kind: str, k: int, objective: str, batch_tokens: int | None):
        key = (kind, k, objective, batch_tokens)
        if key not in done:
            recipe = cached[kind, k]
            fields = recipe.model_dump(mode="json") | {"objective": {"type": objective}}
            fields["train"]["output"] = str(tmp_path_factory.mktemp("out"))
            recipe = Recipe.model_validate(fields)
            reader = (
                CacheReader.open(Path(recipe.cache.path))
                if batch_tokens is None
                else live_reader(recipe, batch_tokens=batch_tokens)
            )
            steps = 1 if batch_tokens == OTHER_BATCHES else STEPS
            done[key] = train(recipe, reader, steps=steps)
        return done[key]

    return runs


CASES = [
    ("b", SHARED, "tidal_kl"),
    ("b", SHARED, "forward_kl"),
    ("b", SHARED, "reverse_kl"),
    ("b", SHARED, "reverse_calm"),
    ("a", 0, "reverse_calm"),
    ("a", 0, "calm_tidal"),
]


@pytest.mark.parametrize(("kind", "k", "objective"), CASES)
def test_the_same_teacher_batches_give_the_same_losses_bit_for_bit(kind, k, objective, run):
    cached_logs, cached_gradient = run(kind, k, objective, None)
    live_logs, live_gradient = run(kind, k, objective, SAME_BATCHES)
    assert len(cached_logs) == STEPS
    assert cached_logs == live_logs  # loss, both terms, gradient norm, of every step
    assert torch.equal(cached_gradient, live_gradient)
    assert any(entry[objective] > 0 for entry in cached_logs)


@pytest.mark.parametrize(("kind", "k", "objective"), CASES)
def test_other_teacher_batches_give_the_same_first_step_within_float32(kind, k, objective, run):
    (cached, *_), cached_gradient = run(kind, k, objective, None)
    (live, *_), live_gradient = run(kind, k, objective, OTHER_BATCHES)
    for name in ("loss", objective):
        assert live[name] == pytest.approx(cached[name], rel=FIRST_LOSS)
    moved = (live_gradient - cached_gradient).norm() / cached_gradient.norm()
    assert moved <= FIRST_GRADIENT


def test_other_teacher_batches_are_other_bits(cached):
    """So the test above compares something: the live teacher really is asked."""
    recipe = cached["b", SHARED]
    reader = CacheReader.open(Path(recipe.cache.path))
    live = live_reader(recipe, batch_tokens=OTHER_BATCHES)
    entry = reader.entries[0]
    pairs = zip(live.read_shard(entry).views, reader.read_shard(entry).views, strict=True)
    assert any(not np.array_equal(one.targets.logp_C, other.targets.logp_C) for one, other in pairs)


def test_pipeline_a_is_the_same_whatever_else_was_kept(run):
    assert run("a", 5, "reverse_calm", None)[0] == run("a", 0, "reverse_calm", None)[0]
    assert run("a", 5, "reverse_calm", SAME_BATCHES)[0] == run("a", 0, "reverse_calm", None)[0]
