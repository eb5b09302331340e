"""Every token's exact bytes, a fingerprint of what matters, and refusals that say what serves."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel, WordPiece
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.text.tokenizer import ChatTokenizer, check_shared_vocabulary
from storage_schemas.errors import TokenizerError
from storage_schemas.examples import Message

LOSSLESS = "na\u00efve \u4f60\u597d \U0001f469\u200d\U0001f4bb\r\n\t  x = 1_000 \ufffd"


def metaspace_backend() -> Tokenizer:
    """Gemma's kind: spaces as U+2581, unknown characters as bytes, nothing prepended."""
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a"]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(BPE(vocab=vocab, merges=[("\u2581", "a")], byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def fast(backend: Tokenizer, **tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def test_each_token_of_qwen_has_the_bytes_that_its_own_file_gives(qwen, qwen_tokens):
    assert len(qwen_tokens) == 151643
    assert dict(enumerate(qwen.vocabulary()[:151643])) == qwen_tokens


def test_each_token_of_deepseek_has_the_text_that_it_decodes_to(deepseek):
    literal = deepseek.hf.backend_tokenizer.get_added_tokens_decoder()
    num_compared = 0
    for i, token in enumerate(deepseek.vocabulary()):
        try:
            text = token.decode()
        except UnicodeDecodeError:  # part of a character: decoding it alone gives U+FFFD
            continue
        assert text == (literal[i].content if i in literal else deepseek.hf.decode([i]))
        num_compared += 1
    assert num_compared > 120_000


def test_added_tokens_stand_for_their_literal_text(qwen):
    assert qwen.token_bytes(qwen.mask_id) == b"<|mask|>"
    assert qwen.token_bytes(qwen.eos_id) == b"<|im_end|>"
    assert qwen.encode("<|mask|>").tolist() == [qwen.mask_id]


def test_the_bytes_of_a_text_are_the_bytes_of_its_tokens(qwen, deepseek):
    for tokenizer in (qwen, deepseek, ChatTokenizer(fast(metaspace_backend()))):
        ids = tokenizer.encode(LOSSLESS).tolist()
        assert b"".join(map(tokenizer.token_bytes, ids)) == LOSSLESS.encode()


def test_metaspace_tokens_hold_spaces_and_single_bytes():
    tokenizer = ChatTokenizer(fast(metaspace_backend()))
    # "a" is id 257 of 256 byte tokens + U+2581; " a" is merged; the accent is two byte tokens
    assert tokenizer.encode("a a\u00e9").tolist() == [257, 259, 0xC3, 0xA9]
    assert tokenizer.token_bytes(259) == b" a"
    assert tokenizer.token_bytes(0xC3) == b"\xc3"


def test_a_text_that_a_tokenizer_cannot_hold_is_refused_as_lossy():
    tokenizer = ChatTokenizer(fast(metaspace_backend()))
    with pytest.raises(TokenizerError, match="is lossy"):
        tokenizer.encode("this vocabulary writes \u2581 for a space")


def test_the_vocabulary_size_counts_added_tokens(qwen, deepseek):
    assert qwen.vocab_size == len(qwen.hf) == len(qwen.vocabulary()) == 151643 + 4
    assert deepseek.vocab_size == len(deepseek.hf)


def test_an_unused_id_has_no_bytes_and_an_id_outside_is_refused():
    backend = metaspace_backend()
    vocab = {**backend.get_vocab(), "b": 300}
    backend.model = BPE(vocab=vocab, merges=[("\u2581", "a")], byte_fallback=True)
    tokenizer = ChatTokenizer(fast(backend))
    assert tokenizer.vocab_size == 301
    assert tokenizer.token_bytes(299) == b""
    for outside in (-1, 301):
        with pytest.raises(TokenizerError, match="expected an id below 301"):
            tokenizer.token_bytes(outside)


def test_a_missing_mask_token_is_refused_when_it_is_asked_for():
    tokenizer = ChatTokenizer(fast(metaspace_backend()))
    with pytest.raises(TokenizerError, match="has no mask token"):
        _ = tokenizer.mask_id
    with pytest.raises(TokenizerError, match="no end-of-sequence token"):
        _ = tokenizer.eos_id
    with pytest.raises(TokenizerError, match="no chat template"):
        tokenizer.chat_text([Message(role="user", content="hi")], add_generation_prompt=True)


def test_a_named_mask_token_wins_and_must_be_in_the_vocabulary(byte_tokenizer):
    assert (
        byte_tokenizer(mask_token="a").token_bytes(byte_tokenizer(mask_token="a").mask_id) == b"a"
    )
    with pytest.raises(TokenizerError, match=r"'<\|MASK\|>' is not in the vocabulary"):
        byte_tokenizer(mask_token="<|MASK|>")


def test_a_saved_tokenizer_loads_with_the_same_fingerprint_at_any_path(byte_tokenizer, tmp_path):
    original = byte_tokenizer()
    for folder in ("one", "two"):
        original.hf.save_pretrained(tmp_path / folder)
        loaded = ChatTokenizer.load(str(tmp_path / folder))
        assert loaded.fingerprint == original.fingerprint
        assert (loaded.mask_id, loaded.eos_id) == (original.mask_id, original.eos_id)
        assert loaded.vocabulary() == original.vocabulary()


def test_padding_and_truncation_change_neither_the_fingerprint_nor_the_ids(byte_tokenizer):
    original, other = byte_tokenizer(), byte_tokenizer()
    other.hf.backend_tokenizer.enable_padding(length=64)
    other.hf.backend_tokenizer.enable_truncation(max_length=3)
    assert other.fingerprint == original.fingerprint
    assert other.encode("a longer text").tolist() == original.encode("a longer text").tolist()


@pytest.mark.parametrize(
    "change",
    [{"template": "{{ messages }}"}, {"mask_token": "a"}, {"mask_token": "<|im_end|>"}],
    ids=str,
)
def test_template_and_mask_enter_the_fingerprint(byte_tokenizer, change):
    assert byte_tokenizer(**change).fingerprint != byte_tokenizer().fingerprint


def test_the_end_of_sequence_enters_the_fingerprint(byte_tokenizer):
    other = byte_tokenizer()
    other.hf.eos_token = "<|im_start|>"
    assert other.fingerprint != byte_tokenizer().fingerprint


def test_merges_enter_the_fingerprint(byte_tokenizer):
    assert byte_tokenizer(("a", "b")).fingerprint != byte_tokenizer(("b", "c")).fingerprint


def test_a_wordpiece_tokenizer_is_refused():
    backend = Tokenizer(WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match=r"decoder \['WordPiece'\].*supported are byte-level"):
        ChatTokenizer(fast(backend))


def test_a_tokenizer_without_a_decoder_is_refused():
    with pytest.raises(TokenizerError, match="cannot recover bytes"):
        ChatTokenizer(fast(Tokenizer(WordLevel(vocab={"a": 0}, unk_token="a"))))


def test_a_prepended_space_is_refused():
    backend = metaspace_backend()
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    with pytest.raises(TokenizerError, match="no prepended space"):
        ChatTokenizer(fast(backend))
    stripping = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*stripping, decoders.Strip(content=" ", left=1)])
    with pytest.raises(TokenizerError, match="a space is prepended"):
        ChatTokenizer(fast(backend))


@pytest.mark.parametrize(
    "normalizer", [normalizers.Lowercase(), normalizers.NFKC(), normalizers.NFD()], ids=str
)
def test_a_normalizer_that_changes_nfc_text_is_refused_at_once(byte_tokenizer, normalizer):
    backend = Tokenizer.from_str(byte_tokenizer().hf.backend_tokenizer.to_str())
    backend.normalizer = normalizer
    with pytest.raises(TokenizerError, match="is lossy"):
        ChatTokenizer(fast(backend))


def test_a_pre_tokenizer_that_drops_white_space_is_refused_at_once(byte_tokenizer):
    backend = Tokenizer.from_str(byte_tokenizer().hf.backend_tokenizer.to_str())
    split = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
    with pytest.raises(TokenizerError, match="is lossy"):
        ChatTokenizer(fast(backend))


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(TokenizerError, match="expected a fast tokenizer"):
        ChatTokenizer(PreTrainedTokenizerBase())


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="expected a tokenizer at"):
        ChatTokenizer.load(str(tmp_path))


def test_equal_vocabularies_are_shared(byte_tokenizer):
    student, teacher = byte_tokenizer(("a", "b")), byte_tokenizer(("b", "c"))
    check_shared_vocabulary(student, teacher, 256)


def test_the_first_differing_id_of_a_shared_vocabulary_is_named(byte_tokenizer):
    student, teacher = byte_tokenizer(("a", "b")), byte_tokenizer(("b", "c"))
    with pytest.raises(TokenizerError, match=r"1 differ.*id 256: student b'ab', teacher b'bc'"):
        check_shared_vocabulary(student, teacher, 258)


def test_a_shared_vocabulary_larger_than_either_is_refused(byte_tokenizer):
    student, teacher = byte_tokenizer(), byte_tokenizer(("a", "b"))
    with pytest.raises(TokenizerError, match=r"the student's tokenizer .* has 259"):
        check_shared_vocabulary(student, teacher, 260)


def test_two_families_do_not_share_a_vocabulary(qwen, deepseek):
    with pytest.raises(TokenizerError, match="differ, the first is id 0"):
        check_shared_vocabulary(qwen, deepseek, 1000)
