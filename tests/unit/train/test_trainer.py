"""Stage 2 on tiny models: one loss however it is cut, and one run however it is interrupted."""

import json
import math
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny import steps_of
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import pipeline.student_train
from pipeline.cache.reader import CacheReader
from pipeline.objectives import gold_logp
from pipeline.stream.collate import collate
from pipeline.stream.loader import CacheStream
from pipeline.student.forward import head, masked_hidden
from pipeline.student_train import num_steps, run_student_train
from pipeline.teacher_cache import run_teacher_cache
from pipeline.train.build import StudentAnswer, build_distillation
from pipeline.train.expand import expander
from pipeline.train.tensors import as_tensors
from storage_schemas.errors import RecipeError

STEPS = 6


@pytest.fixture(scope="module")
def caches(tiny, tmp_path_factory):
    """A cache of each pipeline, made once."""
    paths = {}
    for kind in "ab":
        recipe = tiny.recipe(kind, tmp_path_factory.mktemp(f"cache-{kind}"))
        run_teacher_cache(recipe)
        paths[kind] = recipe.cache.path
    return paths


@pytest.fixture
def train_recipe(tiny, caches, tmp_path):
    """A recipe over the cache that is there; its output is `name` in this test's folder."""

    def make(kind, name="out", **overrides):
        folders = {"cache.path": caches[kind], "train.output": str(tmp_path / name)}
        return tiny.recipe(kind, tmp_path, **folders, **overrides)

    return make


def train(recipe, **options):
    """The entries of a run, without what they say of time."""
    logs: list[dict[str, float]] = []
    summary = run_student_train(recipe, on_log=logs.append, shows_progress=False, **options)
    return steps_of(logs), summary


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("a", {"type": "masked_nll"}),
        ("a", {"type": "reverse_calm", "weight": 0.7}),
        ("a", {"type": "calm"}),
        ("a", {"type": "calm_tidal"}),
        ("b", {"type": "forward_kl"}),
        ("b", {"type": "reverse_kl"}),
        ("b", {"type": "tidal_kl", "weight": 3.0}),
        ("b", {"type": "reverse_calm"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["type"],
)
def test_the_first_loss_is_the_formula_over_the_first_batch(
    kind, objective, train_recipe, caches, tiny
):
    """Example by example, without padding or batching; cross-entropy over MASKABLE tokens."""
    recipe = train_recipe(kind, objective=objective, **{"train.max_steps": 1})
    (first,), _ = train(recipe)
    model = tiny.model("student").train()
    shared = 4096 if kind == "b" else None
    reader = CacheReader.open(Path(caches[kind]))
    expand = expander(reader.identity.kept, reader.read_basis(), torch.device("cpu"))
    distillation = build_distillation(recipe.objective, shared_vocab=shared, expand=expand)
    is_tokens = distillation is not None and distillation.normalizer == "tokens"
    stream = CacheStream(reader, batch_size=4, seed=0, has_tokens=is_tokens, collate=list)
    total, num_maskable, terms = 0.0, 0, []
    for view in next(stream.batches()):
        batch = collate([view], has_tokens=is_tokens)
        one = as_tensors(
            batch,
            temperature=distillation.temperature if distillation else None,
            block_size=16,
            rows_per_block=10**6,
        )
        is_masked_BS, ids_BS = one.is_masked_BS, one.student_ids_BS
        with torch.no_grad():
            hidden_NH = masked_hidden(model, ids_BS, is_masked_BS, mask_id=4095, block_size=16)
            logits_NV = head(model)(hidden_NH)
        logp_N = gold_logp(logits_NV, ids_BS[is_masked_BS])
        total -= logp_N.sum().item() / (batch.time_E[0] + 1e-6)
        num_maskable += batch.num_maskable
        if distillation is not None:
            answer = StudentAnswer(logits_NV=logits_NV, logp_N=logp_N)
            terms.append(distillation.term(answer, one.rows, 0.0).term)
    want = total / num_maskable
    assert first["masked_nll"] == pytest.approx(want, rel=1e-5)
    if distillation is not None:
        mean = sum(float(t.total) for t in terms) / sum(int(t.count) for t in terms)
        assert first[distillation.name] == pytest.approx(mean, rel=1e-4, abs=1e-7)
        want += distillation.weight * mean
    assert first["loss"] == pytest.approx(want, rel=1e-5)


class JoinedStream(CacheStream):
    """The views of four micro-batches in one: cut anew, they would be other views."""

    def __init__(self, reader, *, batch_size, has_tokens, **options):
        options |= {"batch_size": batch_size // 4, "collate": list}
        super().__init__(reader, has_tokens=has_tokens, **options)
        self._has_tokens = has_tokens

    def batches(self, *, then=lambda batch: batch, skip=0):
        small = super().batches(skip=4 * skip)
        while True:
            views = [view for part in islice(small, 4) for view in part]
            yield then(collate(views, has_tokens=self._has_tokens))


@pytest.mark.parametrize("kind", ["a", "b"])
def test_four_small_batches_a_step_are_one_large_one(kind, train_recipe, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.student_train, "CacheStream", JoinedStream)
        large, _ = train(train_recipe(kind, "large", **{"train.batch_size": 8}))
    small, _ = train(
        train_recipe(kind, "small", **{"train.batch_size": 2, "train.accumulation": 4})
    )
    assert len(large) == len(small) == STEPS
    for one, other in zip(large, small, strict=True):
        for name in one.keys() - {"grad_norm"}:
            assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-6), name
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(
    "change", [{"train.packing": True}, {"train.loader_workers": 1}], ids=["packed", "a worker"]
)
@pytest.mark.parametrize("kind", ["a", "b"])
def test_how_rows_are_packed_and_who_reads_them_changes_no_loss(kind, change, train_recipe):
    size = {"train.batch_size": 6}
    plain, _ = train(train_recipe(kind, "plain", **size))
    other, _ = train(train_recipe(kind, "other", **size, **change))
    for one, changed in zip(plain, other, strict=True):
        for name in one.keys() - {"grad_norm"}:
            assert one[name] == pytest.approx(changed[name], rel=1e-5, abs=1e-5), name
        assert one["grad_norm"] == pytest.approx(changed["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(("kind", "accumulation"), [("a", 1), ("b", 2)])
def test_a_run_resumed_in_the_middle_is_the_undisturbed_one_bit_for_bit(
    kind, accumulation, train_recipe, tmp_path
):
    overrides = {
        "train.save_steps": 2,
        "train.keep_checkpoints": 9,
        "train.batch_size": 3,
        "train.accumulation": accumulation,
    }
    recipe = train_recipe(kind, **overrides)
    undisturbed, _ = train(recipe)
    out = tmp_path / "out"
    final = weights(out / "final")
    # what a kill after step 4 leaves: no summary, and the next checkpoint half written
    shutil.rmtree(out / "final")
    (out / "summary.json").unlink()
    (out / "checkpoint-6" / "trainer_state.json").unlink()
    resumed, summary = train(recipe)
    assert resumed == undisturbed[4:]
    assert summary.is_complete
    assert weights(out / "final") == final


def test_a_stopped_run_leaves_a_checkpoint_and_ends_like_the_undisturbed_one(
    train_recipe, tmp_path
):
    undisturbed, whole = train(train_recipe("b", "undisturbed"))
    recipe = train_recipe("b", "stopped")
    calls = iter(range(1, 100))
    first, stopped = train(recipe, should_stop=lambda: next(calls) == 3)
    assert (stopped.is_complete, stopped.steps) == (False, 3)
    assert (tmp_path / "stopped" / "checkpoint-3" / "trainer_state.json").exists()
    assert not (tmp_path / "stopped" / "summary.json").exists()
    rest, summary = train(recipe)
    assert first + rest == undisturbed
    assert (summary.is_complete, summary.steps) == (True, whole.steps)
    assert weights(tmp_path / "stopped" / "final") == weights(tmp_path / "undisturbed" / "final")


def test_a_finished_run_is_found_finished_without_training(train_recipe, monkeypatch):
    recipe = train_recipe("a")
    _, first = train(recipe)

    def fail(*args, **options):
        raise AssertionError("trains again")

    monkeypatch.setattr(pipeline.student_train, "make_trainer", fail)
    logs, again = train(recipe)
    assert logs == []
    assert again == first


def test_another_recipe_is_refused_in_the_same_output_with_what_differs(train_recipe, tmp_path):
    train(train_recipe("a"))
    before = (tmp_path / "out" / "run.json").read_bytes()
    other = train_recipe(
        "a",
        **{"train.learning_rate": 2e-3, "objective.temperature": 5.0, "train.batch_size": 4},
    )
    with pytest.raises(RecipeError) as caught:
        train(other)
    message = str(caught.value)
    assert "differs in recipe.objective.temperature, recipe.train.learning_rate;" in message
    assert "name another train.output" in message
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused(train_recipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecipeError, match=r"train\.output: cannot write to .*file/out"):
        train(train_recipe("a", "file/out"))


def test_progress_is_the_share_of_steps_done_and_goes_on_after_a_resume(train_recipe, monkeypatch):
    seen: list[float] = []
    build = pipeline.student_train.build_distillation

    def recording(config, **options):
        distillation = build(config, **options)

        def term(answer, batch, progress):
            seen.append(progress)
            return distillation.term(answer, batch, progress)

        return replace(distillation, term=term)

    monkeypatch.setattr(pipeline.student_train, "build_distillation", recording)
    recipe = train_recipe("b", **{"train.accumulation": 2, "train.batch_size": 2})
    calls = iter(range(1, 100))
    train(recipe, should_stop=lambda: next(calls) == 4)
    logs, _ = train(recipe)
    assert seen == [step / STEPS for step in range(STEPS) for _ in range(2)]
    assert [entry["progress"] for entry in logs] == [5 / STEPS, 1.0]


def test_a_log_entry_is_the_mean_of_the_steps_since_the_last(train_recipe):
    each, _ = train(train_recipe("b", "each"))
    thirds, _ = train(train_recipe("b", "thirds", **{"train.log_steps": 3}))
    assert [entry["step"] for entry in thirds] == [3.0, 6.0]
    for i, entry in enumerate(thirds):
        for name in ("loss", "masked_nll", "tidal_kl"):
            steps = [one[name] for one in each[3 * i : 3 * i + 3]]
            assert entry[name] == pytest.approx(sum(steps) / 3, rel=1e-6)


def test_checkpoint_and_final_student_reload_in_transformers_with_identical_logits(
    train_recipe, tmp_path, monkeypatch
):
    kept = []
    make = pipeline.student_train.make_trainer

    def keeping(*args, **options):
        trainer, checkpoint = make(*args, **options)
        kept.append(trainer.model)
        return trainer, checkpoint

    monkeypatch.setattr(pipeline.student_train, "make_trainer", keeping)
    train(train_recipe("a", **{"train.save_steps": STEPS}))
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        student = kept[0].eval()
        want = type(student).forward(student, ids).logits
        for name in ("final", f"checkpoint-{STEPS}"):
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name).eval()
            assert torch.equal(model(ids).logits, want)
    assert (tmp_path / "out" / "final" / "tokenizer.json").exists()


def test_training_moves_the_loss_down(train_recipe):
    logs, _ = train(train_recipe("b", **{"train.max_steps": 40, "train.learning_rate": 3e-3}))
    first, last = (
        sum(entry["masked_nll"] for entry in part) / 10 for part in (logs[:10], logs[-10:])
    )
    assert last < 0.8 * first


def test_bfloat16_stays_near_float32_and_keeps_float32_weights(train_recipe, tmp_path):
    exact, _ = train(train_recipe("b", "fp32"))
    rough, _ = train(train_recipe("b", "bf16", **{"train.precision": "bf16"}))
    assert rough[0]["loss"] != exact[0]["loss"]
    for one, other in zip(rough, exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)  # bf16 has 8 bits
        assert math.isfinite(one["grad_norm"])
    config = json.loads((tmp_path / "bf16" / "final" / "config.json").read_text())
    assert config["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["a", "b"])
def test_activations_made_again_give_the_same_losses_and_gradient_norms(kind, train_recipe):
    kept, _ = train(train_recipe(kind, "kept"))
    again, _ = train(train_recipe(kind, "again", **{"train.gradient_checkpointing": True}))
    assert again == kept


def test_a_run_with_adapters_resumes_exactly_and_ends_as_a_plain_student(
    train_recipe, tiny, tmp_path
):
    lora = {"train.lora": {"rank": 4, "dropout": 0.1}}  # whose randomness is resumed too
    undisturbed, _ = train(train_recipe("b", "undisturbed", **lora))
    recipe = train_recipe("b", "stopped", **lora)
    calls = iter(range(1, 100))
    first, _ = train(recipe, should_stop=lambda: next(calls) == 3)
    rest, _ = train(recipe)
    assert first + rest == undisturbed
    final = tmp_path / "stopped" / "final"
    assert weights(final) == weights(tmp_path / "undisturbed" / "final")
    assert (final / "adapter" / "adapter_model.safetensors").exists()
    assert (final / "tokenizer.json").exists()
    student, start = AutoModelForCausalLM.from_pretrained(final), tiny.model("student")
    assert student.state_dict().keys() == start.state_dict().keys()
    moved = {
        name.rpartition(".")[0].rpartition(".")[2]
        for name, x in student.named_parameters()
        if not torch.equal(x, start.get_parameter(name))
    }
    assert moved == set(recipe.train.lora.targets)


def test_a_run_with_adapters_that_lost_its_end_is_finished_from_its_last_checkpoint(
    train_recipe, tmp_path
):
    recipe = train_recipe("b", **{"train.lora": {"rank": 4}})
    train(recipe)
    final = tmp_path / "out" / "final"
    want = weights(final)
    shutil.rmtree(final)
    (tmp_path / "out" / "summary.json").unlink()
    logs, summary = train(recipe)
    assert (logs, summary.is_complete) == ([], True)
    assert weights(final) == want


def test_the_number_of_steps_is_the_epochs_views_or_max_steps(train_recipe):
    recipe = train_recipe(
        "a", **{"train.max_steps": None, "train.epochs": 2.5, "train.accumulation": 2}
    )
    assert num_steps(recipe, 24) == 8  # 60 views in steps of 8, the last one filled up
    assert num_steps(recipe, 1) == 1
    capped = train_recipe("a", **{"train.max_steps": 5, "train.epochs": 2.5})
    assert num_steps(capped, 24) == 5
    assert num_steps(capped, 4) == 3


def test_the_summary_tells_the_last_values_and_outlives_a_move_of_the_folder(
    train_recipe, tmp_path
):
    logs, summary = train(train_recipe("a"))
    assert summary.output == tmp_path / "out" / "final"
    assert summary.metrics["loss"] == logs[-1]["loss"]
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (stored["output"], stored["steps"]) == ("final", STEPS)


def test_a_student_with_fewer_embeddings_than_tokens_is_refused(train_recipe, tiny, tmp_path):
    small = tiny.model("student")
    small.resize_token_embeddings(4000)
    small.save_pretrained(tmp_path / "small")
    tiny.tokenizers["student"].hf.save_pretrained(tmp_path / "small")
    recipe = train_recipe("a", **{"student.model": str(tmp_path / "small")})
    with pytest.raises(RecipeError, match=r"at least 4096 embeddings.*got 4000; resize"):
        train(recipe)


def test_weights_are_trained_not_copied(train_recipe, tiny, tmp_path):
    train(train_recipe("a"))
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    start = tiny.model("student")
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(trained.parameters(), start.parameters(), strict=True)
    ]
    assert min(moved) > 0
    assert_close(max(moved), 5e-3, atol=5e-3, rtol=0)  # a few steps of 1e-3
