"""From passes to targets: chunk sums, the top of each distribution, and CompDemo.

Axes: T teacher position, C chunk, M answered position, V vocabulary.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tiny import assert_same

from pipeline.diffusion.compdemo import split_mask
from pipeline.teacher.answer import KeepDense, NotFinite, all_finite, answer_views
from pipeline.teacher.backend import RowBlock
from pipeline.teacher.keep import KeepChunks, KeepTokens, RowKeeper
from pipeline.teacher.transformers_backend import TransformersBackend
from storage_schemas.errors import TeacherError
from storage_schemas.examples import Pair
from storage_schemas.targets import DenseTargets, KeptTargets
from storage_schemas.views import Corruption

VOCAB, MASK, SEED = 13, 12, 5
EXACT = {"atol": 2e-6, "rtol": 0}  # float32 log-likelihoods of a few nats against float64
Score = Callable[[np.ndarray, int], np.ndarray]


class Toy:
    """A backend of no model: `score(noised ids, position)` gives each row of logits.

    The hidden states are the logits, and the head is the identity.
    """

    vocab_size = VOCAB
    device = torch.device("cpu")
    head = torch.nn.Linear(VOCAB, VOCAB, bias=False)
    torch.nn.init.eye_(head.weight)

    def __init__(self, score: Score, *, rows_a_block: int = 3, backwards: bool = False) -> None:
        self._score = score
        self._rows_a_block = rows_a_block
        self._backwards = backwards

    def rows(self, passes, keep) -> Iterator[RowBlock]:
        keeper = RowKeeper.of(keep, self.device)
        order = range(len(passes))
        places = [
            (i, int(position))
            for i in (reversed(order) if self._backwards else order)
            for position in np.flatnonzero(passes[i].is_answered_T)
        ]
        for start in range(0, len(places), self._rows_a_block):
            block = places[start : start + self._rows_a_block]
            rows = [self._score(passes[i].noised_ids_T, position) for i, position in block]
            logits_MV = torch.tensor(np.array(rows), dtype=torch.float32)
            gold_M = torch.tensor([int(passes[i].clean_ids_T[position]) for i, position in block])
            yield RowBlock(
                pass_M=np.array([i for i, _ in block]),
                position_M=np.array([position for _, position in block]),
                kept=keeper(logits_MV, logits_MV, gold_M),
            )

    def close(self) -> None: ...


def by_context(noised_ids_T: np.ndarray, position: int) -> np.ndarray:
    """Logits that depend on every visible token and on the place."""
    text = repr((noised_ids_T.tolist(), position)).encode()
    return 2 * np.random.default_rng(list(text)).standard_normal(VOCAB)


def make_pair(record_id: str = "r", *, seed: int = 0) -> Pair:
    """Chunks of 1 to 3 teacher tokens, after a prompt of two."""
    rng = np.random.default_rng(seed)
    chunks, t = [], 2
    for s in range(2, 9):
        size = int(rng.integers(1, 4))
        chunks.append((t, t + size, s, s + 1))
        t += size
    return Pair(
        record_id=record_id,
        student_ids_S=rng.integers(0, 12, 10).astype(np.int32),
        is_target_S=np.arange(10) >= 2,
        teacher_ids_T=rng.integers(0, 12, t).astype(np.int32),
        chunks_C4=np.array(chunks, np.int32),
    )


def mask_chunks(pair: Pair, chosen: list[int], *, view: int = 0, time: float = 0.5) -> Corruption:
    is_masked_C = np.isin(np.arange(len(pair.chunks_C4)), chosen)
    is_masked_S, is_masked_T = np.zeros(10, bool), np.zeros(len(pair.teacher_ids_T), bool)
    for t0, t1, s0, s1 in pair.chunks_C4[is_masked_C]:
        is_masked_T[t0:t1] = is_masked_S[s0:s1] = True
    return Corruption(
        view=view,
        time=time,
        is_masked_S=is_masked_S,
        is_masked_T=is_masked_T,
        is_masked_C=is_masked_C,
    )


def ask(backend, views, *, demo_ratio=None, keep=None):
    return answer_views(
        backend, views, mask_id=MASK, seed=SEED, demo_ratio=demo_ratio, keep=keep or KeepChunks()
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def test_worked_by_hand():
    # Uniform rows: every token has log-likelihood -log 13, so a chunk of n tokens has -n log 13.
    pair = make_pair()
    (targets,) = ask(
        Toy(lambda ids, position: np.zeros(VOCAB)), [(pair, mask_chunks(pair, [1, 4]))]
    )
    assert targets.chunk_C.tolist() == [1, 4]
    assert targets.pass_C.tolist() == [0, 0]
    sizes = np.diff(pair.chunks_C4[[1, 4], :2])[:, 0]
    np.testing.assert_allclose(targets.logp_C, -sizes * np.log(13), **EXACT)
    assert targets.tokens is None


def test_a_chunk_is_the_sum_of_its_tokens_own_log_likelihoods():
    views = [
        (pair, mask_chunks(pair, chosen))
        for pair, chosen in (
            (make_pair("a", seed=1), [0, 2, 3, 6]),
            (make_pair("b", seed=2), []),
            (make_pair("c", seed=3), [5]),
        )
    ]
    for (pair, corruption), targets in zip(views, ask(Toy(by_context), views), strict=True):
        noised_T = np.where(corruption.is_masked_T, MASK, pair.teacher_ids_T).astype(np.int32)
        assert targets.chunk_C.tolist() == np.flatnonzero(corruption.is_masked_C).tolist()
        assert targets.logp_C.dtype == np.float32
        for chunk, got in zip(targets.chunk_C, targets.logp_C, strict=True):
            t0, t1 = pair.chunks_C4[chunk, :2].tolist()
            want = sum(
                log_softmax(by_context(noised_T, t))[pair.teacher_ids_T[t]] for t in range(t0, t1)
            )
            assert got == pytest.approx(want, abs=1e-5)


def test_compdemo_answers_each_half_from_the_pass_that_shows_the_other():
    pair = make_pair(seed=4)
    corruption = mask_chunks(pair, [0, 1, 2, 3, 5, 6], view=3)
    is_a_C, is_b_C = split_mask(
        corruption.is_masked_C, ratio=0.5, seed=SEED, record_id=pair.record_id, view=3
    )
    assert min(is_a_C.sum(), is_b_C.sum()) > 0, "the seed splits this mask"
    (targets,) = ask(Toy(by_context), [(pair, corruption)], demo_ratio=0.5)

    for is_asked_C, number in ((is_b_C, 0), (is_a_C, 1)):  # pass 1 shows A and answers B
        noised_T = pair.teacher_ids_T.copy()
        for t0, t1 in pair.chunks_C4[is_asked_C, :2]:
            noised_T[t0:t1] = MASK
        for chunk in np.flatnonzero(is_asked_C):
            t0, t1 = pair.chunks_C4[chunk, :2].tolist()
            want = sum(
                log_softmax(by_context(noised_T, t))[pair.teacher_ids_T[t]] for t in range(t0, t1)
            )
            at = targets.chunk_C.tolist().index(chunk)
            assert targets.logp_C[at] == pytest.approx(want, abs=1e-5)
            assert targets.pass_C[at] == number
    assert targets.chunk_C.tolist() == np.flatnonzero(is_a_C | is_b_C).tolist()


@pytest.mark.parametrize("demo_ratio", [None, 0.5])
@pytest.mark.parametrize(
    "keep",
    [
        KeepChunks(),
        KeepTokens(k=4, temperatures=(1.0, 2.0), vocab_size=9),
        KeepDense(vocab_size=9),
    ],
    ids=["chunks", "top_k", "dense"],
)
def test_a_views_targets_do_not_depend_on_what_is_asked_beside_it_or_in_which_order(
    demo_ratio, keep
):
    views = [
        (pair, mask_chunks(pair, chosen, view=view))
        for pair, chosen, view in (
            (make_pair("a", seed=1), [0, 2, 3, 6], 0),
            (make_pair("a", seed=1), [1, 2], 1),
            (make_pair("b", seed=2), [], 0),
            (make_pair("c", seed=3), [5], 7),
        )
    ]
    together = ask(Toy(by_context), views, demo_ratio=demo_ratio, keep=keep)
    backwards = ask(
        Toy(by_context, rows_a_block=2, backwards=True),
        views[::-1],
        demo_ratio=demo_ratio,
        keep=keep,
    )
    for view, one, other in zip(views, together, backwards[::-1], strict=True):
        (alone,) = ask(Toy(by_context, rows_a_block=100), [view], demo_ratio=demo_ratio, keep=keep)
        assert_same(one, alone)
        assert_same(other, alone)


def test_the_top_k_and_its_logsumexps_live_on_the_shared_columns_and_likelihoods_on_all():
    pair = make_pair(seed=6)
    corruption = mask_chunks(pair, [1, 2, 5])
    shared, temperatures = 9, (1.0, 2.0)
    keep = KeepTokens(k=4, temperatures=temperatures, vocab_size=shared)
    (targets,) = ask(Toy(by_context), [(pair, corruption)], keep=keep)
    top_k = targets.tokens
    assert isinstance(top_k, KeptTargets)
    assert (top_k.temperatures, top_k.vocab_size) == (temperatures, shared)
    noised_T = np.where(corruption.is_masked_T, MASK, pair.teacher_ids_T).astype(np.int32)
    positions = np.flatnonzero(corruption.is_masked_T)
    assert len(top_k.gold_logp_M) == len(positions)
    for row, position in enumerate(positions.tolist()):
        logits = by_context(noised_T, position)
        order = np.argsort(-logits[:shared])[:4]
        assert top_k.ids_MK[row].tolist() == order.tolist()
        np.testing.assert_allclose(top_k.logits_MK[row], logits[order], **EXACT)
        for column, temperature in enumerate(temperatures):
            want = np.log(np.exp(logits[:shared] / temperature).sum())
            np.testing.assert_allclose(top_k.logsumexp_MJ[row, column], want, **EXACT)
        want = log_softmax(logits)[pair.teacher_ids_T[position]]
        np.testing.assert_allclose(top_k.gold_logp_M[row], want, **EXACT)


def test_dense_targets_are_the_shared_columns_as_they_are():
    pair = make_pair(seed=7)
    corruption = mask_chunks(pair, [0, 6])
    (targets,) = ask(Toy(by_context), [(pair, corruption)], keep=KeepDense(vocab_size=9))
    noised_T = np.where(corruption.is_masked_T, MASK, pair.teacher_ids_T).astype(np.int32)
    want = [by_context(noised_T, t)[:9] for t in np.flatnonzero(corruption.is_masked_T).tolist()]
    assert isinstance(targets.tokens, DenseTargets)
    np.testing.assert_array_equal(targets.tokens.logits_MV, np.array(want, np.float32))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_names_the_record_and_the_token(bad):
    pair, other = make_pair("the-bad-one", seed=8), make_pair("good", seed=8)
    corruption = mask_chunks(pair, [2])
    at = int(pair.chunks_C4[2, 0])
    calls = iter(range(100))

    def score(ids, position):
        row = by_context(ids, position)
        if next(calls) >= corruption.is_masked_T.sum():  # the second pass
            row[3] = bad
        return row

    views = [(other, corruption), (pair, corruption)]
    answers = ask(Toy(score), views)
    assert answers[1] == NotFinite(position=at)
    with pytest.raises(TeacherError, match=rf"record the-bad-one:.*token {at} is not finite"):
        all_finite(views, answers)
    (alone,) = ask(Toy(by_context), views[:1])
    assert_same(answers[0], alone)


def test_no_view_gives_no_targets():
    assert ask(Toy(by_context), []) == []


@pytest.mark.parametrize("kind", ["a", "b"])
def test_real_models_agree_with_one_view_at_a_time(tiny, tmp_path, kind):
    recipe = tiny.recipe(kind, tmp_path)
    views = tiny.views(recipe)[:8]
    model = tiny.model(f"teacher-{kind}")
    many, one = (
        TransformersBackend(model, block_size=recipe.teacher_block_size, batch_tokens=size)
        for size in (2000, 1)
    )
    options = {
        "mask_id": tiny.tokenizers[f"teacher-{kind}"].mask_id,
        "seed": 0,
        "demo_ratio": recipe.noise.compdemo.ratio if recipe.noise.compdemo else None,
        "keep": KeepChunks(),
    }
    together = answer_views(many, views, **options)
    for view, got in zip(views, together, strict=True):
        (want,) = answer_views(one, [view], **options)
        np.testing.assert_array_equal(got.chunk_C, want.chunk_C)
        np.testing.assert_allclose(got.logp_C, want.logp_C, atol=1e-4, rtol=1e-5)
