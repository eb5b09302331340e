"""The prompt as generation sees it, the response, and where its tokens lie in the content."""

import unicodedata

import numpy as np
import pytest

from pipeline.text.render import render
from storage_schemas.errors import RecordError, TokenizerError
from storage_schemas.examples import Message

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Qwen3's way: an empty think block goes before the last response, and not into the prompt.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}" + GENERATION
)
STRIPPING = "{% for m in messages %}" + TURN.replace("content", "content | trim") + "{% endfor %}"
STRIPPING += GENERATION


def conversation(*contents: str) -> list[Message]:
    """Turns of user and assistant; the assistant has the last one."""
    roles = ("user", "assistant") * len(contents)
    start = len(contents) % 2
    return [Message(role=r, content=c) for r, c in zip(roles[start:], contents, strict=False)]


def text_of(ids, tokenizer) -> str:
    return b"".join(tokenizer.token_bytes(i) for i in ids.tolist()).decode()


def test_prompt_and_response_are_the_templates_text_tokenized_apart(byte_tokenizer):
    # "\n" ends the prompt and begins the response: one token in one go, two when apart
    tokenizer = byte_tokenizer(("\u010a", "\u010a"))
    rendered = render(conversation("hi", "\nyo"), tokenizer)
    assert text_of(rendered.prompt_ids, tokenizer) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of(rendered.response_ids, tokenizer) == "\nyo<|im_end|>\n"
    assert rendered.prompt_ids.dtype == rendered.response_ids.dtype == np.int32
    assert tokenizer.token_bytes(int(rendered.response_ids[0])) == b"\n"


def test_spans_are_bytes_of_the_content_and_template_text_has_none(byte_tokenizer):
    rendered = render(conversation("hi", "\u00e9!"), byte_tokenizer())
    # e acute: two bytes; "!"; <|im_end|>; "\n"
    assert rendered.response_spans.tolist() == [[0, 1], [1, 2], [2, 3], [-1, -1], [-1, -1]]
    assert rendered.response_spans.dtype == np.int32


def test_text_that_the_template_puts_first_belongs_to_the_response(byte_tokenizer):
    tokenizer = byte_tokenizer(template=THINKING)
    rendered = render(conversation("hi", "ok"), tokenizer)
    lead = len("<think>\n\n</think>\n\n")
    assert text_of(rendered.response_ids, tokenizer) == "<think>\n\n</think>\n\nok<|im_end|>\n"
    spans = rendered.response_spans.tolist()
    assert spans == [[-1, -1]] * lead + [[0, 1], [1, 2], [-1, -1], [-1, -1]]


@pytest.mark.parametrize("content", ["think", "<think>", "im_end", "\n", "a<|im_end|>"], ids=repr)
def test_content_that_repeats_the_templates_words_is_found_in_its_own_place(
    byte_tokenizer, content
):
    content = content if content.strip() else content + "think" + content
    tokenizer = byte_tokenizer(template=THINKING)
    rendered = render(conversation("hi", content), tokenizer)
    is_inside = rendered.response_spans[:, 0] >= 0
    assert text_of(rendered.response_ids[is_inside], tokenizer) == content
    after = text_of(rendered.response_ids, tokenizer).removeprefix("<think>\n\n</think>\n\n")
    assert after == content + "<|im_end|>\n"
    assert is_inside.argmax() == len("<think>\n\n</think>\n\n")


def test_a_token_that_straddles_the_edge_of_the_content_has_no_span(byte_tokenizer):
    tokenizer = byte_tokenizer(("\u010a", "a"), template=THINKING)  # "\n" + "a" is one token
    rendered = render(conversation("hi", "ab"), tokenizer)
    straddling, inside = rendered.response_ids.tolist()[-4:-2]
    assert (tokenizer.token_bytes(straddling), tokenizer.token_bytes(inside)) == (b"\na", b"b")
    assert rendered.response_spans[-4:-2].tolist() == [[-1, -1], [1, 2]]


def test_a_token_that_runs_on_into_the_template_has_no_span(byte_tokenizer):
    tokenizer = byte_tokenizer(
        ("b", "."), template="{% for m in messages %}{{ m.content }}.{% endfor %}"
    )
    rendered = render(conversation("hi", "ab"), tokenizer)
    assert rendered.response_spans.tolist() == [[0, 1], [-1, -1]]


def test_spans_count_what_a_template_strips(byte_tokenizer):
    whole = render(conversation("hi", "\u3000 ok \n"), byte_tokenizer())
    stripped = render(conversation("hi", "\u3000 ok \n"), byte_tokenizer(template=STRIPPING))
    # an ideographic space is 3 bytes and a space 1: "ok" is bytes 4 to 6 of the content
    assert stripped.response_spans.tolist() == [[4, 5], [5, 6], [-1, -1], [-1, -1]]
    assert [4, 5] in whole.response_spans.tolist()


def test_contents_are_nfc_normalized_before_both_sides_see_them(qwen, deepseek):
    composed = conversation("caf\u00e9?", "na\u00efve \ud55c\uae00 \u1e69")
    decomposed = [
        Message(role=m.role, content=unicodedata.normalize("NFD", m.content)) for m in composed
    ]
    for tokenizer in (qwen, deepseek):
        ours, theirs = render(composed, tokenizer), render(decomposed, tokenizer)
        assert ours.prompt_ids.tolist() == theirs.prompt_ids.tolist()
        assert ours.response_ids.tolist() == theirs.response_ids.tolist()
        assert ours.response_spans.max() == len(composed[-1].content.encode())


def test_the_tokens_of_one_emoji_have_disjoint_byte_spans(qwen):
    rendered = render(conversation("hi", "\U0001fae0"), qwen)
    spans = rendered.response_spans[rendered.response_spans[:, 0] >= 0]
    assert len(spans) > 1
    assert spans[0, 0] == 0
    assert spans[-1, 1] == 4
    assert (spans[1:, 0] == spans[:-1, 1]).all()


def test_only_the_last_turn_is_the_response(qwen):
    rendered = render(conversation("a", "first answer", "b", "second answer"), qwen)
    assert "first answer" in text_of(rendered.prompt_ids, qwen)
    assert text_of(rendered.response_ids, qwen) == "second answer<|im_end|>\n"


def test_system_and_tool_turns_are_part_of_the_prompt(qwen):
    messages = [
        Message(role="system", content="be brief"),
        Message(role="user", content="2+2"),
        Message(role="tool", content="4"),
        Message(role="assistant", content="four"),
    ]
    prompt = text_of(render(messages, qwen).prompt_ids, qwen)
    assert "system\nbe brief" in prompt
    assert "tool\n4" in prompt


USER, ASSISTANT = Message(role="user", content="hi"), Message(role="assistant", content="yo")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        pytest.param([], "no_response", id="nothing"),
        pytest.param([USER], "no_response", id="question-only"),
        pytest.param([USER, ASSISTANT, USER], "no_response", id="question-last"),
        pytest.param([ASSISTANT], "no_prompt", id="answer-only"),
        pytest.param([USER, Message(role="assistant", content="")], "empty_response", id="empty"),
        pytest.param(
            [USER, Message(role="assistant", content=" \n\u3000")], "empty_response", id="blank"
        ),
        pytest.param([Message(role="wizard", content="hi"), ASSISTANT], "unknown_role", id="role"),
        pytest.param(
            [USER, Message(role="assistant", content="a\ud83d")], "invalid_text", id="surrogate"
        ),
        pytest.param(
            [Message(role="user", content="\udc00"), ASSISTANT],
            "invalid_text",
            id="surrogate-in-prompt",
        ),
    ],
)
def test_a_conversation_that_cannot_be_learned_is_refused_with_its_reason(
    byte_tokenizer, messages, reason
):
    with pytest.raises(RecordError) as refusal:
        render(messages, byte_tokenizer())
    assert refusal.value.reason == reason


def refusal_of(template, messages, byte_tokenizer) -> str:
    with pytest.raises(RecordError) as refusal:
        render(messages, byte_tokenizer(template=template))
    return refusal.value.reason


def test_a_template_that_changes_the_content_is_the_records_refusal(byte_tokenizer):
    shouting = "{% for m in messages %}" + TURN.replace("content", "content | upper")
    reason = refusal_of(shouting + "{% endfor %}" + GENERATION, [USER, ASSISTANT], byte_tokenizer)
    assert reason == "content_not_in_template"


def test_a_conversation_that_the_template_raises_on_is_the_records_refusal(byte_tokenizer):
    raising = "{{ raise_exception('no system role') }}"
    assert refusal_of(raising, [USER, ASSISTANT], byte_tokenizer) == "refused_by_template"


def test_a_template_that_is_never_prefix_stable_is_the_tokenizers_refusal(byte_tokenizer):
    counting = "{{ messages | length }}{% for m in messages %}" + TURN + "{% endfor %}" + GENERATION
    with pytest.raises(TokenizerError, match="not prefix-stable"):
        render([USER, ASSISTANT], byte_tokenizer(template=counting))


def test_two_answers_in_a_row_under_a_thinking_template_are_the_records_refusal(byte_tokenizer):
    reason = refusal_of(THINKING, [USER, ASSISTANT, ASSISTANT], byte_tokenizer)
    assert reason == "not_prefix_stable"
