"""The student as the harness's model: stop sequences, masks of answers, bounds worked by hand."""

import math

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from pipeline.benchmarks.lm import TidecacheLM, cut_at, draw_masks
from pipeline.cli.generate import load
from pipeline.demo.corpus import ASSETS
from pipeline.generate.decoding import Decoding
from pipeline.student.forward import head, masked_hidden
from storage_schemas.errors import RecipeError

PROMPT = "def add(a, b):"


@pytest.fixture(scope="module")
def student():
    return load(str(ASSETS / "student"), block_size=16, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def lm(student) -> TidecacheLM:
    decoding = Decoding(max_new_tokens=32, block_size=16, steps_per_block=16)
    return TidecacheLM(student.model, student.tokenizer, decoding, batch_size=4)


def _request(*args: object) -> Instance:
    return Instance(request_type="generate_until", doc={}, arguments=args, idx=0)


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (["\n\n"], "a\nb"),
        (["b", "a\n"], ""),
        ([], "a\nb\n\nc"),
        ([""], "a\nb\n\nc"),
        (["x"], "a\nb\n\nc"),
    ],
)
def test_a_response_ends_before_the_first_stop_sequence(until: list[str], expected: str):
    assert cut_at("a\nb\n\nc", until) == expected


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 16])
def test_the_masks_of_an_answer_are_of_all_sizes_alike(num_tokens: int):
    masks_DN = draw_masks("a question", num_tokens, 16)
    sizes = masks_DN.sum(1)
    assert sizes.min() >= 1
    assert sizes.max() <= num_tokens
    if 16 % num_tokens == 0:  # each size equally often, but for where the draws begin
        counts = np.bincount(sizes, minlength=num_tokens + 1)[1:]
        assert counts.max() - counts.min() <= 1


def test_answers_to_one_question_share_their_random_numbers():
    # with one token masked of two or more it is the first of the longer's order that fits
    short, long = draw_masks("q", 4, 8), draw_masks("q", 8, 8)
    assert (draw_masks("q", 4, 8) == short).all()
    assert (draw_masks("another", 8, 8) != long).any()


def test_an_answer_of_one_token_has_its_exact_likelihood(lm: TidecacheLM, student):
    tokenizer = student.tokenizer
    context = lm.apply_chat_template([{"role": "user", "content": PROMPT}])
    answer = next(
        word for word in ("    return", " return", "a") if len(tokenizer.encode(word)) == 1
    )
    context_ids, ids = tokenizer.encode(context), tokenizer.encode(answer)
    ids_S = np.concatenate([context_ids, ids])
    rest = -len(ids_S) % 16
    ids_S = np.concatenate([ids_S, np.full(rest, tokenizer.mask_id, ids_S.dtype)])
    masked_S = np.zeros(len(ids_S), dtype=np.bool_)
    masked_S[len(context_ids) :] = True
    with torch.no_grad():
        hidden_NH = masked_hidden(
            student.model,
            torch.from_numpy(ids_S)[None].long(),
            torch.from_numpy(masked_S)[None],
            mask_id=tokenizer.mask_id,
            block_size=16,
        )
        logits_V = head(student.model)(hidden_NH[:1])[0].double()
    logits_V[tokenizer.mask_id] = -math.inf
    expected = logits_V.log_softmax(-1)[int(ids[0])].item()
    ((value, is_best),) = lm.loglikelihood([_request(context, answer)])
    assert value == pytest.approx(expected, abs=1e-5)
    assert is_best == (int(logits_V.argmax()) == int(ids[0]))


def test_real_code_is_likelier_than_noise(lm: TidecacheLM):
    context = lm.apply_chat_template([{"role": "user", "content": PROMPT}])
    (code, _), (noise, _) = lm.loglikelihood(
        [_request(context, "    return a"), _request(context, " zx qqq ~~ %")]
    )
    assert code > noise


def test_responses_come_in_the_requests_order_and_do_not_hang_on_the_batch(lm: TidecacheLM):
    contexts = [
        lm.apply_chat_template([{"role": "user", "content": f"def f{i}({'x, ' * i}y):"}])
        for i in range(3)
    ]
    options = {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False}
    shorter = {**options, "max_gen_toks": 3}
    together = lm.generate_until(
        [
            _request(contexts[0], options),
            _request(contexts[1], shorter),
            _request(contexts[2], options),
        ]
    )
    alone = [
        lm.generate_until([_request(context, chosen)])[0]
        for context, chosen in zip(contexts, (options, shorter, options), strict=True)
    ]
    assert together == alone
    assert all("\n\n" not in text for text in together)


def test_a_response_that_is_begun_for_the_student_stands_at_the_end_of_the_prompt(lm: TidecacheLM):
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "    ret"}]
    text = lm.apply_chat_template(turns, add_generation_prompt=False)
    assert text == lm.apply_chat_template(turns[:1]) + "    ret"


def test_running_text_is_refused_with_what_to_do(lm: TidecacheLM):
    with pytest.raises(RecipeError, match="--records"):
        lm.loglikelihood_rolling([_request("text")])
