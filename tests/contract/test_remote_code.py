"""The families that bring code of their own against the contract, loaded as a recipe loads them."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from remote import REMOTES, make_model, publish

from pipeline.config.models import BlockAttention, FullAttention, TeacherConfig
from pipeline.teacher.families import family_named
from pipeline.teacher.keep import KeepChunks
from pipeline.teacher.transformers_backend import TransformersBackend
from storage_schemas.errors import TeacherError
from storage_schemas.views import TeacherPass

sys.path.insert(0, str(Path(__file__).parent))
from teacher_backend import CHECKS, Case, name_of
from test_teacher_backend import BLOCK, make_passes, may_see

VOCAB, MASK = 128, 1


def config_of(family: str, folder: Path, batch_tokens: int = 4096) -> TeacherConfig:
    """What a recipe would say."""
    is_block = family == "wedlm"
    return TeacherConfig(
        model=str(folder),
        revision="this-folder",
        trust_remote_code=True,
        family=family,
        attention=BlockAttention(type="block", block_size=BLOCK) if is_block else FullAttention(),
        length=96,
        dtype="float32",
        device="cpu",
        batch_tokens=batch_tokens,
    )


def load(family: str, folder: Path, batch_tokens: int = 4096) -> TransformersBackend:
    block_size = BLOCK if family == "wedlm" else None
    return TransformersBackend.load(config_of(family, folder, batch_tokens), block_size=block_size)


@torch.no_grad()
def plain_logits(family: str, model, one: TeacherPass) -> torch.Tensor:
    """One pass alone, as each architecture's own users call it; the shifted ones unshifted."""
    noised, clean = (torch.from_numpy(ids).long() for ids in (one.noised_ids_T, one.clean_ids_T))
    num_tokens = len(noised)
    if family == "wedlm":
        size = 2 * num_tokens
        visible = [[may_see(q, k, num_tokens) for k in range(size)] for q in range(size)]
        mask = torch.zeros(1, 1, size, size).masked_fill(~torch.tensor(visible), -torch.inf)
        position_ids = torch.arange(num_tokens).repeat(2)[None]
        masks = {"full_attention": mask, "sliding_attention": mask}
        output = model(torch.cat([clean, noised])[None], masks, position_ids)
        return output.logits[0, num_tokens:]
    if family == "llada2":
        return model(noised[None], torch.zeros(1, 1, num_tokens, num_tokens)).logits[0]
    logits_TV = model(noised[None]).logits[0]
    return logits_TV.roll(1, 0) if family == "dream" else logits_TV


def unanswered_first(passes: list[TeacherPass]) -> list[TeacherPass]:
    """Nothing predicts the first token of a shifted family."""
    made = []
    for one in passes:
        is_answered_T = one.is_answered_T.copy()
        is_answered_T[0] = False
        noised_ids_T = np.where(is_answered_T, np.int32(MASK), one.clean_ids_T)
        changed = {"is_answered_T": is_answered_T, "noised_ids_T": noised_ids_T}
        made.append(dataclasses.replace(one, **changed))
    return made


KINDS = [*((family, {}) for family in REMOTES), ("llada", {"reads_padding": False})]


@pytest.fixture(
    scope="module", params=KINDS, ids=lambda kind: "_".join([kind[0], *map(str, kind[1])])
)
def case(request, tmp_path_factory, remote_code_cache) -> Case:
    family, options = request.param
    model = make_model(family, vocab_size=VOCAB, **options)
    folder = publish(model, family, tmp_path_factory.mktemp("remote") / family)
    return Case(
        make=lambda batch_tokens: load(family, folder, batch_tokens),
        oracle=lambda one: plain_logits(family, model, one),
        passes=unanswered_first(make_passes(VOCAB, MASK)),
    )


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_a_backend_of_remote_code_keeps_the_contract(check, case):
    check(case)


def counting(folder: Path) -> Path:
    """A Dream-like checkpoint whose row at a token predicts the token that follows it."""
    model = make_model("dream", vocab_size=VOCAB, hidden_size=VOCAB)
    with torch.no_grad():
        for layer in model.layers:
            layer.out.weight.mul_(1e-3)  # attention still moves rows, as the leak check asks
            layer.block[2].weight.zero_()
        model.embed_tokens.weight.copy_(300 * torch.eye(VOCAB))
        model.lm_head.weight.copy_(torch.eye(VOCAB).roll(1, 0))
    return publish(model, "dream", folder)


def test_a_shifted_row_predicts_the_token_after_the_one_it_stands_at(tmp_path, remote_code_cache):
    ids_T = np.arange(10, 42, dtype=np.int32)  # each token follows the one before it
    is_answered_T = np.zeros(len(ids_T), np.bool_)
    is_answered_T[3::4] = True
    counted = TeacherPass(
        clean_ids_T=ids_T,
        noised_ids_T=np.where(is_answered_T, np.int32(MASK), ids_T),
        is_answered_T=is_answered_T,
        is_answered_C=np.zeros(0, np.bool_),
    )
    backend = load("dream", counting(tmp_path / "counting"))
    (block,) = backend.rows([counted], KeepChunks())
    np.testing.assert_array_equal(block.position_M, np.flatnonzero(is_answered_T))
    assert (block.kept.gold_logp_M > np.log(0.9)).all()
    unshifted = dataclasses.replace(family_named("dream"), is_shifted=False)
    wrong = TransformersBackend(
        backend._model, block_size=None, batch_tokens=4096, family=unshifted
    )
    (block,) = wrong.rows([counted], KeepChunks())
    assert (block.kept.gold_logp_M < np.log(0.1)).all()


@pytest.mark.parametrize(
    ("family", "form"),
    [("wedlm", "tensor"), ("wedlm", "additive"), ("dream", "additive")],
)
def test_a_mask_in_a_form_that_the_code_does_not_read_is_noticed(family, form):
    wrong = dataclasses.replace(family_named(family), mask_form=form)
    with pytest.raises(TeacherError, match="does not attend"):
        TransformersBackend(
            make_model(family, vocab_size=VOCAB),
            block_size=BLOCK if family == "wedlm" else None,
            batch_tokens=100,
            family=wrong,
        )


def test_a_mask_that_is_added_as_ones_and_zeros_hides_no_padding_and_is_noticed(caplog):
    wrong = dataclasses.replace(family_named("llada2"), mask_form="boolean")
    model = make_model("llada2", vocab_size=VOCAB)
    with caplog.at_level("WARNING"):
        TransformersBackend(model, block_size=None, batch_tokens=100, family=wrong)
    assert "rows see the padding after them" in caplog.text


def test_code_that_leaves_its_padding_mask_unread_gets_passes_of_one_length(caplog):
    model = make_model("llada", vocab_size=VOCAB, reads_padding=False)
    with caplog.at_level("WARNING"):
        backend = TransformersBackend(
            model, block_size=None, batch_tokens=4096, family=family_named("llada")
        )
    assert "only passes of one length go together" in caplog.text
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    list(backend.rows(make_passes(VOCAB, MASK), KeepChunks()))
    assert [length for _, length in shapes] == [40, 32, 24, 16, 8]


def test_code_that_reads_its_padding_mask_gets_it_only_where_there_is_padding():
    model = make_model("llada", vocab_size=VOCAB)
    backend = TransformersBackend(
        model, block_size=None, batch_tokens=4096, family=family_named("llada")
    )
    masked = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: masked.append("attention_mask" in kwargs), with_kwargs=True
    )
    passes = make_passes(VOCAB, MASK)
    list(backend.rows(passes, KeepChunks()))
    list(backend.rows(passes[:1], KeepChunks()))
    assert masked == [True, False]
