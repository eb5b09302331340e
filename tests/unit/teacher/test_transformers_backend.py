"""The teacher on plain transformers: what it spends, and which models it refuses."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from pipeline.config.models import FullAttention, TeacherConfig
from pipeline.teacher import keep, transformers_backend
from pipeline.teacher.keep import KeepChunks, KeepHidden
from pipeline.teacher.transformers_backend import TransformersBackend
from storage_schemas.errors import TeacherError
from storage_schemas.views import TeacherPass

LENGTHS = (8, 24, 16, 40, 8)


@pytest.fixture(scope="module")
def passes():
    rng = np.random.default_rng(1)
    made = []
    for length in LENGTHS:
        ids_T = rng.integers(2, 3000, length).astype(np.int32)
        is_answered_T = rng.random(length) < 0.4
        is_answered_T[0] = True
        made.append(
            TeacherPass(
                clean_ids_T=ids_T,
                noised_ids_T=np.where(is_answered_T, np.int32(1), ids_T),
                is_answered_T=is_answered_T,
                is_answered_C=np.zeros(0, np.bool_),
            )
        )
    return made


class Spy:
    """The shapes of what a module is called with."""

    def __init__(self, module: nn.Module) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._handle = module.register_forward_hook(
            lambda module, args, kwargs, output: self.shapes.append(
                tuple((args[0] if args else kwargs["input_ids"]).shape)
            ),
            with_kwargs=True,
        )

    def close(self) -> None:
        self._handle.remove()


def test_the_head_runs_at_answered_positions_only(tiny, passes):
    model = tiny.model("teacher-b")
    backend = TransformersBackend(model, block_size=8, batch_tokens=10_000)
    spy = Spy(model.get_output_embeddings())
    list(backend.rows(passes, KeepChunks()))
    spy.close()
    numbers = sum(np.prod(shape[:-1], dtype=int) for shape in spy.shapes)
    assert numbers == sum(one.is_answered_T.sum() for one in passes)


@pytest.mark.parametrize(("block_size", "copies"), [(None, 1), (8, 2)])
@pytest.mark.parametrize("batch_tokens", [1, 64, 100, 200])
def test_a_forward_pass_holds_no_more_than_batch_tokens(
    tiny, passes, block_size, copies, batch_tokens
):
    model = tiny.model("teacher-b")
    backend = TransformersBackend(model, block_size=block_size, batch_tokens=batch_tokens)
    spy = Spy(model)
    list(backend.rows(passes, KeepChunks()))
    spy.close()
    assert sum(batch for batch, _ in spy.shapes) == len(passes)
    for batch, length in spy.shapes:
        # a pass that is longer than the budget runs alone
        assert batch * length <= batch_tokens or batch == 1
        assert length % copies == 0


def test_rows_come_in_blocks_of_bounded_size(tiny, passes, monkeypatch):
    backend = TransformersBackend(tiny.model("teacher-b"), block_size=None, batch_tokens=10_000)
    (whole,) = backend.rows(passes, KeepChunks())
    monkeypatch.setattr(keep, "_LOGITS_A_BLOCK", 7 * backend.vocab_size)
    blocks = list(backend.rows(passes, KeepChunks()))
    assert [len(block.pass_M) for block in blocks[:-1]] == [7] * (len(blocks) - 1)
    np.testing.assert_array_equal(np.concatenate([b.pass_M for b in blocks]), whole.pass_M)
    np.testing.assert_array_equal(np.concatenate([b.position_M for b in blocks]), whole.position_M)
    np.testing.assert_allclose(
        np.concatenate([block.kept.gold_logp_M for block in blocks]),
        whole.kept.gold_logp_M,
        atol=1e-5,
    )


class DeafModel(Qwen3ForCausalLM):
    """Attends as `sees` says, whatever mask it is given."""

    sees = "past"

    def __init__(self, config) -> None:
        super().__init__(config)
        self.model.register_forward_pre_hook(self._own_mask, with_kwargs=True)

    def _own_mask(self, module, args, kwargs):
        num_tokens = kwargs["input_ids"].shape[1]
        everything = torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool)
        mask = everything.tril() if self.sees == "past" else everything
        return args, kwargs | {"attention_mask": mask}


def _deaf(sees: str) -> DeafModel:
    torch.manual_seed(0)
    model = DeafModel(
        Qwen3Config(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=32,
            initializer_range=0.2,
        )
    )
    model.sees = sees
    return model


def test_a_causal_model_cannot_be_a_full_attention_teacher():
    with pytest.raises(TeacherError, match=r"'full'.*the first row does not see the last token"):
        TransformersBackend(_deaf("past"), block_size=None, batch_tokens=100)


def test_a_model_that_sees_everything_can_be_a_full_attention_teacher():
    TransformersBackend(_deaf("everything"), block_size=None, batch_tokens=100)


@pytest.mark.parametrize("sees", ["past", "everything"])
def test_a_model_that_ignores_its_mask_cannot_be_a_block_wise_teacher(sees):
    with pytest.raises(TeacherError, match=r"'block'.*DeafModel.*cannot serve as a teacher"):
        TransformersBackend(_deaf(sees), block_size=8, batch_tokens=100)


def test_a_model_of_nans_is_refused(tiny):
    model = tiny.model("teacher-b")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    for block_size in (None, 8):
        with pytest.raises(TeacherError, match="does not attend"):
            TransformersBackend(model, block_size=block_size, batch_tokens=100)


def test_a_folder_without_a_model_is_refused_with_its_name(tmp_path, tiny):
    AutoTokenizer.from_pretrained(tiny.folder / "student").save_pretrained(tmp_path)
    config = TeacherConfig(model=str(tmp_path), attention=FullAttention(), device="cpu")
    with pytest.raises(TeacherError, match=str(tmp_path)):
        TransformersBackend.load(config, block_size=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_teacher_of_any_dtype_answers_in_float32(tiny, passes, dtype):
    config = TeacherConfig(
        model=str(tiny.folder / "teacher-b"), attention=FullAttention(), dtype=dtype, device="cpu"
    )
    backend = TransformersBackend.load(config, block_size=None)
    exact = TransformersBackend(tiny.model("teacher-b"), block_size=None, batch_tokens=16384)
    (got,), (want,) = (one.rows(passes, KeepHidden()) for one in (backend, exact))
    assert got.kept.hidden_MH.dtype == got.kept.gold_logp_M.dtype == np.float32
    size = np.abs(want.kept.hidden_MH).max()
    tolerance = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}[dtype]
    assert np.abs(got.kept.hidden_MH - want.kept.hidden_MH).max() <= tolerance * size


def short_of_memory(model, *, limit: int) -> list[int]:
    """The model fails as a GPU does with more than `limit` passes; every batch is noted."""
    batches: list[int] = []

    def allocate(module, args, kwargs):
        batches.append(len(kwargs["input_ids"]))
        if batches[-1] > limit:
            raise torch.OutOfMemoryError("tried to allocate more than there is")

    model.register_forward_pre_hook(allocate, with_kwargs=True)
    return batches


def test_a_batch_without_memory_is_halved_and_nothing_is_lost(tiny, passes, caplog):
    whole = TransformersBackend(tiny.model("teacher-b"), block_size=None, batch_tokens=400)
    model = tiny.model("teacher-b")
    backend = TransformersBackend(model, block_size=None, batch_tokens=400)
    batches = short_of_memory(model, limit=2)
    with caplog.at_level("WARNING", logger=transformers_backend.__name__):
        got, want = (list(one.rows(passes, KeepChunks())) for one in (backend, whole))
    assert max(batches) > 2, "the case has a batch that does not fit"
    assert "out of memory" in caplog.text
    answers = [
        {
            (int(i), int(at)): logp
            for block in blocks
            for i, at, logp in zip(
                block.pass_M, block.position_M, block.kept.gold_logp_M, strict=True
            )
        }
        for blocks in (got, want)
    ]
    assert answers[0].keys() == answers[1].keys()
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    batches.clear()
    list(backend.rows(passes, KeepChunks()))
    assert max(batches) <= 2, "what did not fit once is not tried again"


def test_a_pass_that_does_not_fit_alone_is_one_clear_error(tiny, passes):
    model = tiny.model("teacher-b")
    backend = TransformersBackend(model, block_size=None, batch_tokens=400)
    short_of_memory(model, limit=0)
    with pytest.raises(TeacherError, match=r"expected memory for one pass.*teacher\.length"):
        list(backend.rows(passes, KeepChunks()))
