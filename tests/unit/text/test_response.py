"""Response tokens as text: without the template's words, and without what comes after the end."""

import copy
from itertools import pairwise

import numpy as np
import pytest

from pipeline.text.render import render, render_prompt
from pipeline.text.response import ResponseText
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecordError, TokenizerError
from storage_schemas.examples import Message

THINK = (
    "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m['content'] + '<|im_end|>\\n' -}}"
    "{%- else -%}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
BODY = "    return 'Grüße \N{WAVING HAND SIGN}'\n"


def conversation(body=BODY):
    return (Message(role="user", content="def f():"), Message(role="assistant", content=body))


@pytest.fixture(params=["student", "teacher-a", "think"])
def tokenizer(request, tiny):
    if request.param != "think":
        return tiny.tokenizers[request.param]
    inner = copy.deepcopy(tiny.tokenizers["student"].hf)
    inner.chat_template = THINK
    return ChatTokenizer(inner)


def test_what_training_puts_around_a_response_is_taken_off(tokenizer):
    rendered = render(conversation(), tokenizer)
    reader = ResponseText.of(tokenizer)
    assert reader.of_tokens(rendered.response_ids) == BODY
    filled = np.append(rendered.response_ids, tokenizer.eos_id).astype(np.int32)
    assert reader.of_tokens(filled) == BODY


def test_a_prompt_alone_is_the_prompt_of_training(tokenizer):
    (question, _) = conversation()
    got = render_prompt([question], tokenizer)
    assert got.tolist() == render(conversation(), tokenizer).prompt_ids.tolist()


def test_a_response_that_only_begins_grows_and_never_shrinks(tokenizer):
    ids = render(conversation(), tokenizer).response_ids
    reader = ResponseText.of(tokenizer)
    told = [reader.of_tokens(ids[:count]).rstrip("\ufffd") for count in range(len(ids) + 1)]
    assert told[-1] == BODY
    assert all(after.startswith(before) for before, after in pairwise(told))


def test_nothing_after_the_end_of_turn_counts(tiny):
    tokenizer = tiny.tokenizers["student"]
    ids = tokenizer.encode("    return 1<|im_end|>\n    return 2")
    assert ResponseText.of(tokenizer).of_tokens(ids) == "    return 1"


def test_a_response_cut_in_a_character_and_ids_without_a_token_can_be_read(tiny):
    tokenizer = tiny.tokenizers["student"]
    ids = tokenizer.encode("a\N{WAVING HAND SIGN}")
    reader = ResponseText.of(tokenizer)
    assert reader.of_tokens(ids[:-1]).startswith("a")
    unknown = np.append(ids, [tokenizer.vocab_size + 3]).astype(np.int32)
    assert reader.of_tokens(unknown) == "a\N{WAVING HAND SIGN}"
    assert reader.of_tokens(ids[:0]) == ""


def test_a_prompt_is_normalized_and_refused_as_a_record_is(tiny):
    tokenizer = tiny.tokenizers["student"]
    composed, apart = (
        render_prompt([Message(role="user", content=text)], tokenizer)
        for text in ("caf\u00e9", "cafe\u0301")
    )
    assert composed.tolist() == apart.tolist()
    for messages, reason in (
        ([], "no_prompt"),
        ([Message(role="nobody", content="a")], "unknown_role"),
        ([Message(role="user", content="\ud800")], "invalid_text"),
    ):
        with pytest.raises(RecordError) as caught:
            render_prompt(messages, tokenizer)
        assert caught.value.reason == reason


def test_a_template_that_hides_the_response_is_refused(tiny):
    inner = copy.deepcopy(tiny.tokenizers["student"].hf)
    inner.chat_template = "{{- messages[0]['content'] -}}"
    with pytest.raises(TokenizerError, match="not prefix-stable"):
        ResponseText.of(ChatTokenizer(inner))
