"""Responses: the cached loop against the plain one, and both against training's forward pass.

Axes: S position, N masked position.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.demo.corpus import ASSETS
from pipeline.generate.choose import tokens_per_step
from pipeline.generate.decoding import Decoding
from pipeline.generate.sample import generate
from pipeline.student.forward import head, masked_hidden
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecipeError
from storage_schemas.examples import Message

BLOCK, MASK, VOCAB, NO_EOS = 8, 97, 98, -1
GREEDY = Decoding(max_new_tokens=21, block_size=BLOCK, steps_per_block=BLOCK)
MODES = {
    "greedy": GREEDY,
    "few steps": replace(GREEDY, steps_per_block=3),
    "one step": replace(GREEDY, steps_per_block=1),
    "threshold": replace(GREEDY, threshold=0.3),
    "threshold and few steps": replace(GREEDY, steps_per_block=3, threshold=0.3),
    "random": replace(GREEDY, remasking="random", steps_per_block=4),
    "random and threshold": replace(GREEDY, remasking="random", threshold=0.3),
    "sampled": replace(GREEDY, temperature=0.8, seed=3),
    "all at once": replace(
        GREEDY, temperature=1.3, remasking="random", threshold=0.5, steps_per_block=5, seed=1
    ),
}
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # probabilities from a few per cent to nearly one
}


def small(family="qwen3", attention="sdpa"):
    """Two layers of random float64 weights: rounding decides nothing."""
    torch.manual_seed(0)
    make, config = {
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
        "llama": (LlamaForCausalLM, LlamaConfig),
    }[family]
    return make._from_config(
        config(**SHAPE), attn_implementation=attention, dtype=torch.float64
    ).eval()


MODEL = small()


def prompts_of(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, MASK, length).astype(np.int32) for length in lengths]


def run(prompts, decoding, *, model=MODEL, eos_id=NO_EOS, **options):
    return generate(model, prompts, decoding, mask_id=MASK, eos_id=eos_id, **options)


def plain(generations):
    return [(one.ids.tolist(), one.num_steps, one.is_finished) for one in generations]


@torch.no_grad()
def by_hand(prompt, decoding, *, model=MODEL):
    """One prompt, greedily, with training's own forward pass over [x_t, x_0]."""
    size, end = decoding.block_size, len(prompt) + decoding.max_new_tokens
    ids_S = torch.full((-(-end // size) * size,), MASK)
    ids_S[: len(prompt)] = torch.from_numpy(prompt)
    for start in range(len(prompt) // size * size, len(ids_S), size):
        first, stop = max(start, len(prompt)), start + size
        open_positions = list(range(first, min(stop, end)))
        shares = tokens_per_step(
            len(open_positions), block_size=size, steps_per_block=decoding.steps_per_block
        )
        for share in shares:
            is_masked_S = torch.zeros(stop, dtype=torch.bool)
            is_masked_S[open_positions + list(range(max(end, start), stop))] = True
            hidden_NH = masked_hidden(
                model, ids_S[None, :stop], is_masked_S[None], mask_id=MASK, block_size=size
            )
            logits_NV = head(model)(hidden_NH)
            logits_NV[:, MASK] = -torch.inf
            p_N, ids_N = logits_NV.softmax(-1).max(-1)
            certain = p_N[: len(open_positions)].argsort(descending=True)[:share].tolist()
            for i in certain:
                ids_S[open_positions[i]] = ids_N[i]
            open_positions = [x for i, x in enumerate(open_positions) if i not in certain]
    return ids_S[len(prompt) : end].tolist()


@pytest.mark.parametrize("steps", [BLOCK, 3, 1])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 20])
def test_both_loops_read_the_text_as_training_does(length, steps):
    (prompt,) = prompts_of(length)
    decoding = replace(GREEDY, steps_per_block=steps)
    want = by_hand(prompt, decoding)
    for uses_cache in (True, False):
        (got,) = run([prompt], decoding, uses_cache=uses_cache)
        assert got.ids.tolist() == want


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=6)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    max_new_tokens=st.integers(1, 30),
    eos_at=st.none() | st.integers(0, 29),
    seed=st.integers(0, 99),
)
def test_the_cached_loop_gives_the_plain_loops_tokens(mode, lengths, max_new_tokens, eos_at, seed):
    prompts = prompts_of(*lengths, seed=seed)
    decoding = replace(MODES[mode], max_new_tokens=max_new_tokens)
    slow = run(prompts, decoding, uses_cache=False)
    assert plain(run(prompts, decoding)) == plain(slow)
    if eos_at is not None:  # a token that does come
        eos_id = int(slow[0].ids[eos_at % max_new_tokens])
        slow = run(prompts, decoding, eos_id=eos_id, uses_cache=False)
        assert slow[0].is_finished
        assert plain(run(prompts, decoding, eos_id=eos_id)) == plain(slow)


@pytest.mark.parametrize("uses_cache", [True, False], ids=["cached", "plain"])
@pytest.mark.parametrize("mode", MODES)
def test_a_prompts_response_does_not_depend_on_the_batch(mode, uses_cache):
    prompts = prompts_of(5, 40, 0, 16, 23)
    eos_id = int(run(prompts, MODES[mode])[0].ids[2])  # the first row leaves after its first block
    together = run(prompts, MODES[mode], eos_id=eos_id, uses_cache=uses_cache)
    alone = [run([p], MODES[mode], eos_id=eos_id, uses_cache=uses_cache)[0] for p in prompts]
    assert plain(together) == plain(alone)
    assert together[0].is_finished
    assert not together[3].is_finished


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_other_models_and_attentions_are_cached_as_well(family, attention):
    model = small(family, attention)
    prompts = prompts_of(3, 26, 8)
    cached, slow = (run(prompts, GREEDY, model=model, uses_cache=x) for x in (True, False))
    assert plain(cached) == plain(slow)
    assert [one.ids.tolist() for one in cached] == [
        by_hand(p, GREEDY, model=model) for p in prompts
    ]


@pytest.fixture(scope="module")
def bundled():
    folder = ASSETS / "student"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = ChatTokenizer.load(str(folder))
    texts = [f'def f{i}({"a, " * i}b):\n    """Return b."""' for i in (0, 4, 17)]
    prompts = [
        tokenizer.encode(
            tokenizer.chat_text([Message(role="user", content=text)], add_generation_prompt=True)
        )
        for text in texts
    ]
    return model, tokenizer, prompts


@pytest.mark.parametrize("mode", MODES)
def test_the_trained_student_writes_the_same_with_and_without_cache(bundled, mode):
    model, tokenizer, prompts = bundled
    decoding = replace(MODES[mode], max_new_tokens=70, block_size=32)
    cached, slow = (
        generate(
            model,
            prompts,
            decoding,
            mask_id=tokenizer.mask_id,
            eos_id=tokenizer.eos_id,
            uses_cache=uses_cache,
        )
        for uses_cache in (True, False)
    )
    assert plain(cached) == plain(slow)
    assert all(tokenizer.mask_id not in one.ids for one in cached)


def test_a_response_ends_with_the_first_eos_and_its_row_takes_no_further_step():
    prompts = prompts_of(5, 13)
    whole = run(prompts, GREEDY)
    eos_id = int(whole[0].ids[6])  # position 11: in the first row's second block, of 3 + 8 + 8 + 2
    first = whole[0].ids.tolist().index(eos_id)
    ended, other = run(prompts, GREEDY, eos_id=eos_id)
    assert ended.ids.tolist() == whole[0].ids[: first + 1].tolist()
    assert ended.is_finished
    assert ended.num_steps == (11 if first >= 3 else 3)
    if eos_id not in whole[1].ids:
        assert plain([other]) == plain([whole[1]])


def test_an_eos_in_the_prompt_ends_nothing():
    (prompt,) = prompts_of(13)
    (free,) = run([prompt], GREEDY)
    eos_id = next(token for token in prompt.tolist() if token not in free.ids)
    assert plain(run([prompt], GREEDY, eos_id=eos_id)) == plain([free])


def test_without_eos_a_response_has_as_many_tokens_as_were_asked_for():
    for one in run(prompts_of(0, 3, 8, 30), GREEDY):
        assert (len(one.ids), one.num_steps, one.is_finished) == (21, 21, False)


def test_a_threshold_saves_steps_and_one_saves_none_where_nothing_is_certain():
    prompts = prompts_of(5, 13)
    (slow, _), (fast, _), (same, _) = (
        run(prompts, replace(GREEDY, threshold=threshold)) for threshold in (None, 0.05, 1.0)
    )
    assert fast.num_steps < slow.num_steps
    assert plain([same]) == plain([slow])


def test_seeds_and_names_change_what_is_drawn_and_equal_prompts_are_told_apart():
    (prompt,) = prompts_of(5)
    drawn = replace(GREEDY, temperature=1.0)
    first, second = run([prompt, prompt], drawn)
    assert first.ids.tolist() != second.ids.tolist()
    assert plain(run([prompt], drawn)) == plain([first])
    assert plain(run([prompt], replace(drawn, seed=1))) != plain([first])
    named = run([prompt, prompt], drawn, names=["a", "a"])
    assert plain(named[:1]) == plain(named[1:]) != plain([first])


def test_random_remasking_is_keyed_by_the_seed():
    (prompt,) = prompts_of(5)
    one, same, other = (
        plain(run([prompt], replace(MODES["random"], seed=seed))) for seed in (0, 0, 1)
    )
    assert one == same != other


def test_each_block_is_told_as_soon_as_it_is_done():
    told = []
    prompts = prompts_of(5, 16)
    done = run(prompts, GREEDY, on_progress=lambda place, ids: told.append((place, ids.tolist())))
    for place, generation in enumerate(done):
        ids = generation.ids.tolist()
        lengths = [3, 11, 19, 21] if place == 0 else [8, 16, 21]
        assert [so_far for where, so_far in told if where == place] == [ids[:n] for n in lengths]


def test_the_model_is_left_as_it_was():
    model = small().train()
    before = run(prompts_of(5), GREEDY, model=model)
    assert model.training
    assert plain(before) == plain(run(prompts_of(5), GREEDY))


def test_no_prompt_gives_no_response():
    assert run([], GREEDY) == []


def test_more_tokens_than_the_model_has_positions_are_refused():
    with pytest.raises(
        RecipeError, match=r"at most 107 tokens.*max_new_tokens = 21, got one of 108"
    ):
        run(prompts_of(3, 108), GREEDY)
    assert len(run(prompts_of(107), GREEDY)[0].ids) == 21


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens of 1 or more, got 0"),
        ({"steps_per_block": 9}, "at most as many steps a block as it has tokens, 8, got 9"),
        ({"steps_per_block": 0}, "steps_per_block of 1 or more"),
        ({"threshold": 0.0}, r"threshold in \(0, 1\], got 0"),
        ({"threshold": 1.5}, r"threshold in \(0, 1\], got 1.5"),
        ({"temperature": -1.0}, "temperature of 0 or more, got -1"),
        ({"temperature": float("nan")}, "temperature of 0 or more, got nan"),
    ],
)
def test_settings_without_sense_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        replace(GREEDY, **changes)
