"""The two byte-level BPE tokenizers of the bundled models, and how they are trained.

They cut the same text differently: other words, other numbers, other indentation, other special
tokens, another chat template. `python -m pipeline.demo.tokenizers` makes both again.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from pipeline.demo.corpus import ASSETS, documented_functions, write_seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What makes one tokenizer: its words, its special tokens and its chat template.

    vocab_size counts the special tokens, which have the last ids, in the order of `special_tokens`.
    """

    folder: str
    vocab_size: int
    words: str
    special_tokens: tuple[str, ...]
    eos_token: str
    mask_token: str
    chat_template: str


# Qwen's words: each digit alone, a line break apart from the indentation after it, which in turn
# leaves its last space to the next word. EOS is also the padding, as in Qwen's base models; a turn
# ends with <|im_end|>.
STUDENT = Design(
    folder="tokenizer-student",
    vocab_size=4096,
    words=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"),
    eos_token="<|endoftext|>",
    mask_token="<|mask|>",
    chat_template=(
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
)

# Llama 3's words: up to three digits together; and a line break together with all of the
# indentation after it. The template is that of the Ling and LLaDA 2 family.
TEACHER_A = Design(
    folder="tokenizer-teacher-a",
    vocab_size=3072,
    words=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\s*[\r\n]+[ \t]*|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ),
    special_tokens=("<|end|>", "<role>", "</role>", "<|role_end|>", "<|blank|>"),
    eos_token="<|end|>",
    mask_token="<|blank|>",
    chat_template=(
        "{%- set names = {'system': 'SYSTEM', 'user': 'HUMAN', 'assistant': 'ASSISTANT'} -%}"
        "{%- for message in messages -%}"
        "{{- '<role>' + names[message['role']] + '</role>' + message['content'] -}}"
        "{{- '<|role_end|>' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<role>ASSISTANT</role>' -}}{%- endif -%}"
    ),
)


def train(design: Design, texts: list[str]) -> Tokenizer:
    """A byte-level BPE with every byte in its alphabet: lossless on NFC text, and repeatable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(design.words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=design.vocab_size - len(design.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(  # pyright: ignore[reportUnknownMemberType]
        [AddedToken(token, special=True, normalized=False) for token in design.special_tokens]
    )
    return tokenizer


def save(tokenizer: Tokenizer, design: Design, folder: Path) -> None:
    """Write the folder that `AutoTokenizer.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 131072,
        "eos_token": design.eos_token,
        "pad_token": design.eos_token,
        "mask_token": design.mask_token,
        "additional_special_tokens": [
            token
            for token in design.special_tokens
            if token not in (design.eos_token, design.mask_token)
        ],
        "clean_up_tokenization_spaces": False,
        "chat_template": design.chat_template,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Make the bundled tokenizers, and the list of what the bundled models have seen."""
    write_seen(ASSETS / "seen.npy")
    texts = [
        message.content for record in documented_functions("train") for message in record.messages
    ]
    for design in (STUDENT, TEACHER_A):
        save(train(design, texts), design, ASSETS / design.folder)


if __name__ == "__main__":
    main()
