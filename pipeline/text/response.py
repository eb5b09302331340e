"""The text of a response that a model wrote, without what the chat template puts around it."""

from dataclasses import dataclass

from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import TokenizerError
from storage_schemas.examples import Ints, Message

_PROBE = "\ue000response\ue000"  # a private-use text that no template writes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseText:
    """Reads response tokens as text.

    before: what the template writes between prompt and response (Qwen3: an empty think block).
    end_of_turn: what it writes after the response; "" if nothing but white space.
    """

    tokenizer: ChatTokenizer
    before: str
    end_of_turn: str

    @classmethod
    def of(cls, tokenizer: ChatTokenizer) -> "ResponseText":
        """As the tokenizer's template wraps the response to a question."""
        question = Message(role="user", content="question")
        prompt = tokenizer.chat_text([question], add_generation_prompt=True)
        probe = [question, Message(role="assistant", content=_PROBE)]
        whole = tokenizer.chat_text(probe, add_generation_prompt=False)
        before, found, after = whole.removeprefix(prompt).partition(_PROBE)
        if not whole.startswith(prompt) or not found:
            raise TokenizerError(
                f"the chat template of {tokenizer.name} is not prefix-stable: the conversation's "
                f"text must begin with its prompt, which ends {prompt[-60:]!r}, then hold the "
                f"response"
            )
        return cls(tokenizer=tokenizer, before=before, end_of_turn=after.strip())

    def of_tokens(self, ids: Ints) -> str:
        """The response's own text: up to its end of turn or its EOS."""
        tokenizer = self.tokenizer
        if len(ids) and ids[-1] == tokenizer.eos_id:
            ids = ids[:-1]
        known = ids[ids < tokenizer.vocab_size]  # a model may have more embeddings than tokens
        raw = b"".join(map(tokenizer.token_bytes, known.tolist()))
        text = raw.decode(errors="replace")
        if self.before.startswith(text):
            return ""
        text = text.removeprefix(self.before)
        return text.partition(self.end_of_turn)[0] if self.end_of_turn else text
