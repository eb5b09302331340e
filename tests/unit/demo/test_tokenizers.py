"""The two bundled tokenizers: lossless, prefix-stable, and really different."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.demo.corpus import ASSETS, documented_functions
from pipeline.demo.tokenizers import STUDENT, TEACHER_A, Design, train

_DESIGNS = [pytest.param(d, id=d.folder) for d in (STUDENT, TEACHER_A)]
_TOKENIZERS = {
    d.folder: AutoTokenizer.from_pretrained(ASSETS / d.folder) for d in (STUDENT, TEACHER_A)
}
_CODE = 'def scale(x):\n    """Ten-fold."""\n    if x > 1234:\n        return x * 10\n'


def _tokenizer(design: Design) -> PreTrainedTokenizerFast:
    return _TOKENIZERS[design.folder]


def _ids(design: Design, text: str) -> list[int]:
    return _tokenizer(design)(text, add_special_tokens=True)["input_ids"]


def _render(design: Design, messages: list[dict[str, str]], *, is_open: bool) -> str:
    text = _tokenizer(design).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=is_open
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("design", _DESIGNS)
@given(text=st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_survives_up_to_unicode_normal_form_c(design: Design, text: str):
    expected = unicodedata.normalize("NFC", text)
    assert _tokenizer(design).decode(_ids(design, text)) == expected


@pytest.mark.parametrize("design", _DESIGNS)
def test_every_byte_has_a_token(design: Design):
    text = "".join(map(chr, range(0x250))) + "日本語 \U0001f40d \u200d\t\r\n\x00"
    assert _tokenizer(design).decode(_ids(design, text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("design", _DESIGNS)
def test_every_held_out_response_survives_exactly(design: Design):
    for record in documented_functions("held_out"):
        response = record.messages[-1].content
        if unicodedata.is_normalized("NFC", response):
            assert _tokenizer(design).decode(_ids(design, response)) == response, record.id


@pytest.mark.parametrize("design", _DESIGNS)
def test_the_vocabulary_has_the_designed_size_and_ends_with_the_special_tokens(design: Design):
    tokenizer = _tokenizer(design)
    assert len(tokenizer) == design.vocab_size
    last = range(design.vocab_size - len(design.special_tokens), design.vocab_size)
    assert tuple(tokenizer.convert_ids_to_tokens(list(last))) == design.special_tokens


@pytest.mark.parametrize("design", _DESIGNS)
def test_mask_padding_and_end_are_known_by_name_and_mask_is_no_other_token(design: Design):
    tokenizer = _tokenizer(design)
    assert tokenizer.mask_token == design.mask_token
    assert tokenizer.eos_token == tokenizer.pad_token == design.eos_token
    assert tokenizer.mask_token_id not in (None, tokenizer.eos_token_id, tokenizer.unk_token_id)


@pytest.mark.parametrize("design", _DESIGNS)
def test_tokenizing_adds_no_token_of_its_own(design: Design):
    assert _ids(design, "") == []
    assert not {*_ids(design, _CODE)} & {*_tokenizer(design).all_special_ids}


@pytest.mark.parametrize("design", _DESIGNS)
@given(contents=st.lists(st.text(), min_size=1, max_size=3), response=st.text())
@settings(max_examples=100, deadline=None)
def test_an_open_template_is_a_prefix_of_the_whole(
    design: Design, contents: list[str], response: str
):
    turns = [{"role": ["user", "assistant"][i % 2], "content": c} for i, c in enumerate(contents)]
    answered = [*turns, {"role": "assistant", "content": response}]
    closed = _render(design, answered, is_open=False)
    assert closed.startswith(_render(design, turns, is_open=True) + response)


@pytest.mark.parametrize("design", _DESIGNS)
def test_a_system_turn_is_rendered(design: Design):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert "Be brief." in _render(design, turns, is_open=True)


def test_the_student_reads_digits_singly_and_keeps_line_breaks_apart_from_indentation():
    tokens = _tokenizer(STUDENT).tokenize("x\n    y = 2024")
    assert tokens == ["x", "Ċ", "ĠĠĠ", "Ġy", "Ġ=", "Ġ", "2", "0", "2", "4"]


def test_the_teacher_reads_digits_in_groups_and_a_line_break_together_with_indentation():
    tokens = _tokenizer(TEACHER_A).tokenize("x\n    y = 100")
    assert tokens == ["x", "ĊĠĠĠĠ", "y", "Ġ=", "Ġ", "100"]


def test_the_two_tokenizers_cut_code_differently_and_share_no_special_token():
    student, teacher = (_tokenizer(design).tokenize(_CODE) for design in (STUDENT, TEACHER_A))
    assert student != teacher
    assert not {*STUDENT.special_tokens} & {*TEACHER_A.special_tokens}
    assert _ids(STUDENT, "return") != _ids(TEACHER_A, "return")


def test_a_boundary_of_one_tokenizer_falls_inside_a_token_of_the_other_on_both_sides():
    ends: list[set[int]] = []
    for design in (STUDENT, TEACHER_A):
        offsets = _tokenizer(design)(_CODE, return_offsets_mapping=True)["offset_mapping"]
        ends.append({end for _, end in offsets})
    assert ends[0] - ends[1]
    assert ends[1] - ends[0]


@pytest.mark.parametrize("design", _DESIGNS)
def test_training_twice_gives_the_same_tokenizer(design: Design):
    texts = [record.messages[1].content for record in documented_functions("train")[:300]]
    assert train(design, texts).to_str() == train(design, texts).to_str()


def test_most_held_out_functions_fit_the_demo_s_256_tokens():
    records = documented_functions("held_out")
    lengths = [
        len(_ids(STUDENT, _render(STUDENT, _turns(record.messages), is_open=False)))
        for record in records
    ]
    assert sum(length <= 256 for length in lengths) > 0.6 * len(records)


def _turns(messages):
    return [{"role": message.role, "content": message.content} for message in messages]
