"""Block diffusion by prefix caching: what is computed, and in which steps."""

import numpy as np
import pytest
from served import MASK, VOCAB, Served

from pipeline.teacher.keep import KeepChunks
from pipeline.teacher.vllm_backend import VllmBackend
from pipeline.teacher.vllm_engine import RowRequest
from pipeline.teacher.vllm_plugin.pooler import RowPooler
from storage_schemas.views import TeacherPass

BLOCK, KV_BLOCK = 16, 32


@pytest.fixture(scope="module")
def backend(checkpoints):
    served = Served(model="qwen3", block_size=BLOCK)
    backend = VllmBackend.load(served.config(checkpoints("qwen3")), block_size=BLOCK)
    yield backend
    backend.close()


@pytest.fixture
def steps(monkeypatch) -> list[list[int]]:
    """The tokens of each step, sequence by sequence."""
    seen: list[list[int]] = []
    forward = RowPooler.forward

    def record(self, hidden_states, pooling_metadata):
        counts = pooling_metadata.get_pooling_cursor().num_scheduled_tokens_cpu
        seen.append(counts.tolist())
        return forward(self, hidden_states, pooling_metadata)

    monkeypatch.setattr(RowPooler, "forward", record)
    return seen


def views_of_one_record(length: int, num_views: int) -> list[TeacherPass]:
    """Views of the same clean tokens that answer every token."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, VOCAB, length).astype(np.int32)
    everything = np.ones(length, np.bool_)
    one = TeacherPass(
        clean_ids_T=ids,
        noised_ids_T=np.full_like(ids, MASK),
        is_answered_T=everything,
        is_answered_C=everything[:0],
    )
    return [one] * num_views


def test_a_clean_prefix_is_computed_once_for_all_blocks_views_and_passes(backend, steps):
    length, num_views = 128, 3
    list(backend.rows(views_of_one_record(length, num_views), KeepChunks()))
    num_blocks = length // BLOCK
    prefix = (length - BLOCK) // KV_BLOCK * KV_BLOCK  # 96: as far as whole cache blocks go
    # every second block begins within a cache block, whose first half is computed again
    again = num_views * (num_blocks // 2) * BLOCK
    assert sum(map(sum, steps)) == prefix + num_views * length + again


def test_every_step_of_a_sequence_is_one_block_in_company_and_alone(backend, steps):
    list(backend.rows(views_of_one_record(100, 2), KeepChunks()))
    list(backend.rows_alone(views_of_one_record(100, 1), KeepChunks()))
    assert {count for step in steps for count in step} == {BLOCK, 100 % BLOCK}
    assert any(len(step) > 1 for step in steps)
    assert any(len(step) == 1 for step in steps)


def test_prefixes_that_do_not_fit_the_cache_together_change_no_row(backend, monkeypatch):
    passes = Served(model="qwen3", block_size=BLOCK).passes()
    together = list(backend.rows(passes, KeepChunks()))
    monkeypatch.setattr(backend.engine, "kv_tokens", 2 * KV_BLOCK)
    apart = list(backend.rows(passes, KeepChunks()))
    assert len(apart) > len(together)
    for name in ("pass_M", "position_M"):
        assert np.array_equal(*(np.concatenate([getattr(b, name) for b in blocks])
                                for blocks in (together, apart)))  # fmt: skip
    got, want = (
        np.concatenate([b.kept.gold_logp_M for b in blocks]) for blocks in (apart, together)
    )
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_positions_and_tokens_are_what_a_request_names(backend):
    ids = np.arange(2, 2 + 2 * BLOCK, dtype=np.int32)
    backend.engine.keep(KeepChunks())
    named = [(20, 5), (17, 9), (30, 5)]
    request = RowRequest(ids=ids, positions=[p for p, _ in named], gold=[g for _, g in named])
    (table,) = backend.engine.ask([request])
    alone = [
        backend.engine.ask([RowRequest(ids=ids, positions=[p], gold=[g])])[0] for p, g in named
    ]
    np.testing.assert_allclose(table, np.concatenate(alone), atol=1e-5)
