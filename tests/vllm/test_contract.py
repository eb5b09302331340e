"""vLLM against the contract of teacher backends, and against transformers, number by number."""

import numpy as np
import pytest
import torch
from served import Served
from teacher_backend import CHECKS, Case, keep_tokens, kept_of, name_of

from pipeline.teacher.families import family_named
from pipeline.teacher.keep import KeepHidden, KeepTokens
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.teacher.vllm_backend import VllmBackend

LOGIT_TOLERANCE = 1e-4  # float32, logits of size 10

CASES = (
    Served(model="qwen3"),
    Served(model="moe"),
    Served(model="llama"),
    Served(model="qwen2", family="native_shifted"),
    Served(model="qwen3", block_size=16),
    Served(model="moe", block_size=8),
    Served(model="llama", block_size=32),
    Served(model="qwen2", block_size=20),
)


@pytest.fixture(scope="module", params=CASES, ids=str)
def served(request) -> Served:
    return request.param


@pytest.fixture(scope="module")
def config(served, checkpoints):
    return served.config(checkpoints(served.model))


@pytest.fixture(scope="module")
def backend(served, config):
    backend = VllmBackend.load(config, block_size=served.block_size)
    yield backend
    backend.close()


@pytest.fixture
def case(served, config, backend, checkpoints) -> Case:
    model = checkpoints.plain(served.model)

    def make(batch_tokens: int) -> VllmBackend:
        fewer = config.model_copy(update={"batch_tokens": batch_tokens})
        family = family_named(served.family)
        return VllmBackend(backend.engine, fewer, block_size=served.block_size, family=family)

    return Case(
        make=make,
        oracle=lambda one: served.plain_logits(model, one),
        passes=served.passes(),
    )


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_the_backend_keeps_the_contract(check, case):
    check(case)


def test_kept_numbers_are_those_of_transformers(served, config, backend):
    passes = served.passes(seed=7)
    other = TransformersBackend.load(config, block_size=served.block_size)
    keep = keep_tokens(other, 590)
    got, want = ({name: kept_of(one, passes, keep, name) for name in
                  ("gold_logp_M", "ids_MK", "logits_MK", "logsumexp_MJ", "sketch_MR")}
                 for one in (backend, other))  # fmt: skip
    assert got["ids_MK"].keys() == want["ids_MK"].keys()
    for place, want_K in want["logits_MK"].items():
        for name in ("gold_logp_M", "logits_MK", "logsumexp_MJ"):
            error = np.abs(got[name][place] - want[name][place]).max()
            assert error <= LOGIT_TOLERANCE, (place, name, error)
        is_tied_K = np.diff(-want_K, append=np.inf) <= 2 * LOGIT_TOLERANCE
        is_tied_K[1:] |= is_tied_K[:-1]
        same_K = got["ids_MK"][place] == want["ids_MK"][place]
        assert (same_K | is_tied_K).all(), place
        # a number that lies between two integers may be rounded to either
        assert np.abs(got["sketch_MR"][place] - want["sketch_MR"][place]).max() <= 1
    hidden = [kept_of(one, passes, KeepHidden(), "hidden_MH") for one in (backend, other)]
    for place, want_H in hidden[1].items():
        np.testing.assert_allclose(hidden[0][place], want_H, atol=LOGIT_TOLERANCE)


def test_the_head_is_the_checkpoints(backend, served, checkpoints):
    want = checkpoints.plain(served.model).get_output_embeddings()
    assert torch.equal(backend.head.weight, want.weight)
    assert backend.vocab_size == want.weight.shape[0]


def test_what_is_kept_can_change_between_calls(backend, served):
    for k in (3, 5, 3):
        keep = KeepTokens(k=k, temperatures=(1.0,), vocab_size=590)
        ids = kept_of(backend, served.passes(), keep, "ids_MK")
        assert {row.shape for row in ids.values()} == {(k,)}
