"""A tokenizer as this project needs it: exact bytes for every token, a chat template, a mask.

Only lossless tokenizers serve: alignment runs on bytes, because the tokens of one emoji share their
character offsets.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from storage_schemas.errors import RecordError, TokenizerError
from storage_schemas.examples import Ints, Message

_SUPPORTED = (
    "supported are byte-level BPE (GPT-2, Qwen, Llama 3, DeepSeek), and Metaspace with byte "
    "fallback and no prepended space (Gemma)"
)
_SPACE = "\u2581"  # stands for a space in Metaspace vocabularies
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Lower-casing, accent stripping, NFD, NFKC, prepended spaces and unknown tokens all show on this.
_PROBE = "A\u00e9 \ufb01  b\n\t\u4f60\U0001f642 "


class ChatTokenizer:
    """A fast Hugging Face tokenizer that is known to be lossless."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mask_token: str | None = None,
        mask_id: int | None = None,
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TokenizerError(
                f"expected a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}; "
                f"{_SUPPORTED}"
            )
        self._tokenizer: Any = tokenizer  # transformers leaves most of what is called here untyped
        self._backend: Any = backend
        self._bytes = _vocabulary_bytes(backend)
        self._mask_id = cast("int | None", self._tokenizer.mask_token_id)
        if mask_id is not None:
            self._mask_id = mask_id
        if mask_token is not None:
            self._mask_id = cast("int | None", backend.token_to_id(mask_token))
            if self._mask_id is None:
                raise TokenizerError(
                    f"mask token {mask_token!r} is not in the vocabulary of {self.name}; name one "
                    "that is, or add it to the tokenizer first"
                )
        self.encode(_PROBE)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        mask_token: str | None = None,
        mask_id: int | None = None,
    ) -> "ChatTokenizer":
        """The tokenizer of a folder or hub repository.

        mask_token or mask_id stands for a masked token, whatever the tokenizer itself says. A mask
        id may lie beyond the vocabulary: it never stands in a text.
        """
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if revision is not None:
            options["revision"] = revision
        try:
            tokenizer = cast("Any", AutoTokenizer).from_pretrained(path, **options)
        except (OSError, ValueError) as e:
            raise TokenizerError(
                f"expected a tokenizer at {path!r}, and could not load one: {e}"
            ) from e
        return cls(tokenizer, mask_token=mask_token, mask_id=mask_id)

    @property
    def hf(self) -> PreTrainedTokenizerFast:
        """The wrapped tokenizer, for saving beside a checkpoint and for transformers' own calls."""
        return cast("PreTrainedTokenizerFast", self._tokenizer)

    @property
    def name(self) -> str:
        """Where the tokenizer came from, for messages to people only."""
        return str(self._tokenizer.name_or_path or type(self._tokenizer).__name__)

    @property
    def mask_id(self) -> int:
        """The id that stands for a masked token."""
        if self._mask_id is None:
            raise TokenizerError(
                f"tokenizer {self.name} has no mask token, which masked diffusion needs; name one "
                "of its tokens as `mask_token`, or its id as `mask_id`"
            )
        return self._mask_id

    @property
    def eos_id(self) -> int:
        """The id that ends a sequence and fills its last block."""
        eos_id = cast("int | None", self._tokenizer.eos_token_id)
        if eos_id is None:
            raise TokenizerError(f"tokenizer {self.name} has no end-of-sequence token (eos_token)")
        return eos_id

    @property
    def vocab_size(self) -> int:
        """One past the largest id, added tokens included: len(tokenizer) if ids have no holes."""
        return len(self._bytes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides ids and texts; equal tokenizers have equal ones at any path.

        Padding and truncation are call-time state of the backend, and never used here.
        """
        definition = json.loads(cast("str", self._backend.to_str()))
        identity = {
            "backend": {k: v for k, v in definition.items() if k not in ("padding", "truncation")},
            "chat_template": self._tokenizer.chat_template,
            "mask_id": self._mask_id,
            "eos_id": self._tokenizer.eos_token_id,
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; b"" for an id that the vocabulary leaves unused."""
        if not 0 <= token_id < len(self._bytes):
            raise TokenizerError(
                f"expected an id below {len(self._bytes)}, got {token_id} (tokenizer {self.name})"
            )
        return self._bytes[token_id]

    def vocabulary(self) -> list[bytes]:
        """The bytes of every token, by id."""
        return list(self._bytes)

    def encode(self, text: str) -> Ints:
        """The ids of a text, without special tokens around it; their bytes ARE the text's bytes."""
        encoding = self._tokenizer(text, add_special_tokens=False, verbose=False)
        ids = np.asarray(encoding["input_ids"], dtype=np.int32)
        want, got = text.encode(), b"".join(map(self._bytes.__getitem__, ids.tolist()))
        if got != want:
            at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), 0)
            raise TokenizerError(
                f"tokenizer {self.name} is lossy: {want[max(at - 8, 0) : at + 24]!r} became "
                f"{got[max(at - 8, 0) : at + 24]!r} (near byte {at}); {_SUPPORTED}"
            )
        return ids

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The chat template's text for these messages."""
        if not self._tokenizer.chat_template:
            raise TokenizerError(f"tokenizer {self.name} has no chat template")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as e:
            roles = ", ".join(message.role for message in messages)
            raise RecordError(
                "refused_by_template",
                f"the chat template of {self.name} refuses a conversation of {roles}: {e}",
            ) from e
        return cast("str", text)


def check_shared_vocabulary(
    student: ChatTokenizer, teacher: ChatTokenizer, shared_vocab: int
) -> None:
    """Raise unless the first `shared_vocab` ids stand for the same bytes on both sides."""
    for side, tokenizer in (("student", student), ("teacher", teacher)):
        if tokenizer.vocab_size < shared_vocab:
            raise TokenizerError(
                f"expected at least {shared_vocab} shared tokens, the {side}'s tokenizer "
                f"{tokenizer.name} has {tokenizer.vocab_size}"
            )
    columns = zip(student.vocabulary()[:shared_vocab], teacher.vocabulary(), strict=False)
    differing = [(i, ours, theirs) for i, (ours, theirs) in enumerate(columns) if ours != theirs]
    if differing:
        first, ours, theirs = differing[0]
        raise TokenizerError(
            f"expected the same first {shared_vocab} tokens in {student.name} and {teacher.name}; "
            f"{len(differing)} differ, the first is id {first}: "
            f"student {ours!r}, teacher {theirs!r}"
        )


def _vocabulary_bytes(backend: Any) -> list[bytes]:
    """Each id's bytes, as the backend's decoder writes them; refuses decoders that lose text."""
    is_byte_level = _is_byte_level(backend)
    added: dict[int, str] = {
        i: token.content for i, token in backend.get_added_tokens_decoder().items()
    }
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    table = _byte_of_char()
    by_id = [b""] * (max([*vocab.values(), *added], default=-1) + 1)
    for token, i in vocab.items():
        by_id[i] = _byte_level_bytes(token, table) if is_byte_level else _metaspace_bytes(token)
    for i, text in added.items():
        by_id[i] = text.encode()
    return by_id


def _is_byte_level(backend: Any) -> bool:
    """True for byte-level, False for Metaspace with byte fallback; anything else is refused."""
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    parts: list[dict[str, Any]] = state.get("decoders", [state])
    kinds = [str(part.get("type")) for part in parts]
    if kinds == ["ByteLevel"]:
        return True
    spaces = [part for part in parts if part.get("type") in ("Metaspace", "Replace")]
    if len(spaces) != 1 or not {*kinds} <= {"Metaspace", "Replace", "ByteFallback", "Fuse"}:
        hint = "; a Strip decoder means that a space is prepended" if "Strip" in kinds else ""
        raise TokenizerError(f"cannot recover bytes from decoder {kinds}{hint}; {_SUPPORTED}")
    (space,) = spaces
    if space["type"] == "Metaspace":
        is_known = space["replacement"] == _SPACE and space.get("prepend_scheme") == "never"
    else:
        is_known = space["pattern"] == {"String": _SPACE} and space["content"] == " "
    if not is_known:
        raise TokenizerError(f"cannot recover bytes from decoder {space}; {_SUPPORTED}")
    return False


def _byte_of_char() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _byte_level_bytes(token: str, table: dict[str, int]) -> bytes:
    try:
        return bytes([table[char] for char in token])
    except KeyError:  # a literal token, as the backend's own decoder reads it
        return token.encode()


def _metaspace_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token.replace(_SPACE, " ").encode()
