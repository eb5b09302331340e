"""A conversation as tokens: the prompt, and the response that is learned (TIDE section 2)."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecordError, TokenizerError
from storage_schemas.examples import Ints, Message

_ROLES = ("system", "user", "assistant", "tool")
_SENTINEL = "\ue000tidecache\ue000"  # a private-use text that no template writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One conversation under one tokenizer and its chat template.

    P prompt tokens, R response tokens. response_spans: each response token's half-open byte span in
    the NFC UTF-8 content of the last message, or (-1, -1) where it is not wholly inside it.
    """

    prompt_ids: Ints
    response_ids: Ints
    response_spans: Ints

    def __post_init__(self) -> None:
        assert self.response_spans.shape == (len(self.response_ids), 2), "one span a response token"


def render(messages: Sequence[Message], tokenizer: ChatTokenizer) -> Rendered:
    """Prompt and response, tokenized apart, so that training sees exactly what generation sees.

    The prompt is the template of all messages but the last, with the generation prompt; the
    response is what the template of all messages adds to it: the content, the end of turn, and any
    text that the template puts before the content (Qwen3: an empty think block).
    """
    messages = normalize(messages)
    prompt_text, full_text = _texts(messages, tokenizer)
    if not full_text.startswith(prompt_text):
        raise _not_prefix_stable(messages, prompt_text, tokenizer)
    response_text = full_text[len(prompt_text) :]
    start, stop, skipped = _content_span(messages, response_text, len(prompt_text), tokenizer)
    response_ids = tokenizer.encode(response_text)
    edges = np.cumsum([0, *(len(tokenizer.token_bytes(i)) for i in response_ids.tolist())])
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    is_inside = (spans[:, 0] >= start) & (spans[:, 1] <= stop)
    spans = np.where(is_inside[:, None], spans - start + skipped, -1)
    return Rendered(
        prompt_ids=tokenizer.encode(prompt_text),
        response_ids=response_ids,
        response_spans=spans.astype(np.int32),
    )


def render_prompt(messages: Sequence[Message], tokenizer: ChatTokenizer) -> Ints:
    """The prompt of a response that is still to come: the ids that training puts before it."""
    to_come = Message(role="assistant", content=_SENTINEL)
    prompt = normalize((*messages, to_come))[:-1]
    return tokenizer.encode(tokenizer.chat_text(prompt, add_generation_prompt=True))


def normalize(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with NFC contents; refuses a conversation that has no response to learn."""
    for message in messages:
        if message.role not in _ROLES:
            raise RecordError(
                "unknown_role", f"expected a role among {', '.join(_ROLES)}, got {message.role!r}"
            )
        if not _is_unicode(message.content):
            raise RecordError("invalid_text", "a message's content has a lone surrogate")
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else "no message"
        raise RecordError("no_response", f"expected the last message to be assistant's, got {last}")
    if not messages[-1].content.strip():
        raise RecordError("empty_response", "the last message, assistant's, has no text")
    if len(messages) == 1:
        raise RecordError("no_prompt", "expected a message before the response, got none")
    return tuple(
        replace(message, content=unicodedata.normalize("NFC", message.content))
        for message in messages
    )


def _texts(messages: Sequence[Message], tokenizer: ChatTokenizer) -> tuple[str, str]:
    """The prompt's text, and the whole conversation's."""
    prompt_text = tokenizer.chat_text(messages[:-1], add_generation_prompt=True)
    return prompt_text, tokenizer.chat_text(messages, add_generation_prompt=False)


def _not_prefix_stable(
    messages: Sequence[Message], prompt_text: str, tokenizer: ChatTokenizer
) -> TokenizerError | RecordError:
    """The template is to blame if it fails on one plain question and answer, else the record is."""
    plain = (Message(role="user", content="question"), Message(role="assistant", content="answer"))
    plain_prompt, plain_full = _texts(plain, tokenizer)
    message = (
        f"the chat template of {tokenizer.name} is not prefix-stable: the conversation's text must "
        f"begin with its prompt, which ends {prompt_text[-60:]!r}"
    )
    if not plain_full.startswith(plain_prompt):
        return TokenizerError(message)
    roles = ", ".join(message.role for message in messages)
    return RecordError("not_prefix_stable", f"{message} (roles: {roles})")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _content_span(
    messages: Sequence[Message], response_text: str, prompt_length: int, tokenizer: ChatTokenizer
) -> tuple[int, int, int]:
    """Byte span of the content in the response's text, and the content's bytes before that span.

    Some templates strip the content; then the stripped content is the span.
    """
    content = messages[-1].content
    for text, skipped in (
        (content, ""),
        (content.strip(), content[: len(content) - len(content.lstrip())]),
    ):
        at = response_text.find(text)
        if at != response_text.rfind(text):  # the template writes the same words: ask it where
            probe = (*messages[:-1], Message(role="assistant", content=_SENTINEL))
            probe_text = tokenizer.chat_text(probe, add_generation_prompt=False)
            expected = probe_text.find(_SENTINEL) - prompt_length
            if expected >= 0 and response_text.startswith(text, expected):
                at = expected
        if at >= 0:
            start = len(response_text[:at].encode())
            return start, start + len(text.encode()), len(skipped.encode())
    raise RecordError(
        "content_not_in_template",
        f"the chat template of {tokenizer.name} changes the response's text: "
        f"{content[:60]!r} is not in {response_text[:120]!r}",
    )
