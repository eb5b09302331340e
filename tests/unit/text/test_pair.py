"""Record -> Pair on real tokenizers of two families, and by hand on tokenizers of single bytes."""

import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.text.pair import make_pair
from pipeline.text.render import render
from storage_schemas.errors import RecipeError, RecordError
from storage_schemas.examples import Message, Record

BLOCK = 32
patient = settings(  # of busy machines
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
ROOM = {"student_length": 4096, "teacher_length": 4096, "block_size": BLOCK}
CROSS = {**ROOM, "teacher_block_size": None, "is_shared_vocab": False}

FRAGMENTS = [
    "def f(x: int) -> int:\n    return x ** 2  # squared\n",
    "for i in range(12345):\r\n\tprint(f'{i:>8}')\r\n",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u6df7\u5408 English \u6587\u672c",
    "\U0001f469\u200d\U0001f4bb\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f44b\U0001f3fd",
    "cafe\u0301 n\u0303 a\u0323\u0302 \u1112\u1161\u11ab",
    "   \t\t \u00a0\u2003\u200b \n\n\n  ",
    "\r\n\r\n\t\t\n\r",
    "0x1F 3.14159 1,000,000 2024-01-31",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\ufffd\u0000\u001b[0m",
    "I'll can't DON'T it's <think> <|im_end|> \u2581 \u0120",
]
TEXTS = st.lists(
    st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    min_size=1,
    max_size=5,
).map("".join)
RESPONSES = TEXTS.filter(lambda text: bool(text.strip()))


def record(prompt: str, response: str) -> Record:
    turns = (Message(role="user", content=prompt), Message(role="assistant", content=response))
    return Record(id="r1", messages=turns)


def joined(ids, tokenizer) -> bytes:
    return b"".join(tokenizer.token_bytes(i) for i in ids.tolist())


def on_fragments(test):
    """The test on drawn texts, and on every fragment by itself."""
    for fragment in FRAGMENTS:
        test = example(prompt=fragment, response=f"{fragment}x")(test)
    return patient(given(prompt=TEXTS, response=RESPONSES)(test))


def edges_of(spans: np.ndarray) -> set[int]:
    return {int(edge) for span in spans for edge in span if span[0] >= 0}


@on_fragments
def test_chunks_partition_the_response_and_both_sides_cover_the_same_bytes(
    qwen, deepseek, prompt, response
):
    pair = make_pair(record(prompt, response), qwen, deepseek, **CROSS)
    text = b""
    for t0, t1, s0, s1 in pair.chunks_C4.tolist():
        assert joined(pair.teacher_ids_T[t0:t1], deepseek) == joined(
            pair.student_ids_S[s0:s1], qwen
        )
        text += joined(pair.student_ids_S[s0:s1], qwen)
    assert text == unicodedata.normalize("NFC", response).encode()
    assert (pair.chunks_C4[1:, ::2] == pair.chunks_C4[:-1, 1::2]).all()


@on_fragments
def test_no_chunk_of_real_tokens_can_be_divided(qwen, deepseek, prompt, response):
    example_record = record(prompt, response)
    pair = make_pair(example_record, qwen, deepseek, **CROSS)
    student, teacher = (render(example_record.messages, side) for side in (qwen, deepseek))
    # brute force: every pair of edges, one of each side
    shared = [
        edge
        for edge in sorted(edges_of(student.response_spans))
        for other in edges_of(teacher.response_spans)
        if edge == other
    ]
    starts = student.response_spans[pair.chunks_C4[:, 2] - len(student.prompt_ids), 0]
    stops = student.response_spans[pair.chunks_C4[:, 3] - 1 - len(student.prompt_ids), 1]
    assert [*starts.tolist(), int(stops[-1])] == shared


@on_fragments
def test_no_prompt_token_is_in_a_chunk_or_a_target(qwen, deepseek, prompt, response):
    example_record = record(prompt, response)
    pair = make_pair(example_record, qwen, deepseek, **CROSS)
    num_student = len(render(example_record.messages, qwen).prompt_ids)
    num_teacher = len(render(example_record.messages, deepseek).prompt_ids)
    assert pair.chunks_C4[:, 0].min() == num_teacher
    assert pair.chunks_C4[:, 2].min() == num_student
    assert pair.is_target_S.tolist() == [i >= num_student for i in range(len(pair.student_ids_S))]


@patient
@given(response=RESPONSES, student_blocks=st.integers(1, 6), teacher_length=st.integers(12, 120))
def test_truncation_only_drops_whole_chunks(
    qwen, deepseek, response, student_blocks, teacher_length
):
    whole = make_pair(record("hi", response), qwen, deepseek, **CROSS)
    limits = {"student_length": BLOCK * student_blocks, "teacher_length": teacher_length}
    fitting = [
        chunk
        for chunk in whole.chunks_C4.tolist()
        if chunk[1] <= teacher_length and chunk[3] <= limits["student_length"]
    ]
    if not fitting:
        with pytest.raises(RecordError) as refusal:
            make_pair(record("hi", response), qwen, deepseek, **{**CROSS, **limits})
        assert refusal.value.reason == "no_chunk"
        return
    cut = make_pair(record("hi", response), qwen, deepseek, **{**CROSS, **limits})
    assert cut.chunks_C4.tolist() == fitting
    assert len(cut.student_ids_S) <= limits["student_length"]
    size = len(cut.student_ids_S)
    assert cut.student_ids_S.tolist() == whole.student_ids_S[:size].tolist()
    assert cut.teacher_ids_T.tolist() == whole.teacher_ids_T[: fitting[-1][1]].tolist()


@patient
@given(response=RESPONSES)
def test_a_tokenizer_is_aligned_with_itself_token_by_token(qwen, response):
    pair = make_pair(record("hi", response), qwen, qwen, **{**CROSS, "is_shared_vocab": True})
    num_prompt = int(pair.is_target_S.argmax())
    num_inside = len(qwen.encode(unicodedata.normalize("NFC", response)))
    positions = np.arange(num_prompt, num_prompt + num_inside)
    columns = [positions, positions + 1, positions, positions + 1]
    assert pair.chunks_C4.tolist() == np.stack(columns, axis=1).tolist()


# <|im_start|>, "user\n", "hi", <|im_end|>, "\n", <|im_start|>, "assistant\n": 1+5+2+1+1+1+10 tokens
NUM_PROMPT = 21


@pytest.fixture
def by_hand(byte_tokenizer):
    """Student ab|c|d|e and teacher a|bc|d|e: chunks abc, d, e."""
    student, teacher = byte_tokenizer(("a", "b")), byte_tokenizer(("b", "c"))

    def build(response="abcde", **changes):
        return make_pair(record("hi", response), student, teacher, **{**CROSS, **changes})

    return build, student


def test_a_pair_worked_by_hand(by_hand):
    build, student = by_hand
    pair = build()
    # one more block than the 21 prompt tokens, 4 of content, <|im_end|>, "\n" fill: 27 -> 32
    assert (pair.chunks_C4 - NUM_PROMPT).tolist() == [[0, 2, 0, 2], [2, 3, 2, 3], [3, 4, 3, 4]]
    assert len(pair.student_ids_S) == BLOCK
    assert pair.is_target_S.tolist() == [False] * NUM_PROMPT + [True] * (BLOCK - NUM_PROMPT)
    assert (
        joined(pair.student_ids_S[NUM_PROMPT:], student) == b"abcde<|im_end|>\n" + b"<|im_end|>" * 5
    )
    assert len(pair.teacher_ids_T) == NUM_PROMPT + 4  # ends at the last aligned token


def test_every_array_of_a_pair_has_its_declared_type(by_hand):
    build, _ = by_hand
    for pair in (build(), build(teacher_block_size=BLOCK)):
        assert pair.student_ids_S.dtype == pair.teacher_ids_T.dtype == np.int32
        assert pair.chunks_C4.dtype == np.int32
        assert pair.is_target_S.dtype == np.bool_


def test_a_shared_vocabulary_keeps_only_single_tokens_of_the_same_id(by_hand):
    build, _ = by_hand
    pair = build(is_shared_vocab=True)
    assert (pair.chunks_C4 - NUM_PROMPT).tolist() == [[2, 3, 2, 3], [3, 4, 3, 4]]


def test_a_block_wise_teacher_is_filled_with_its_eos_after_the_last_aligned_token(by_hand):
    build, student = by_hand
    plain, filled = build(response="dabc"), build(response="dabc", teacher_block_size=16)
    size = len(plain.teacher_ids_T)
    assert filled.teacher_ids_T[:size].tolist() == plain.teacher_ids_T.tolist()
    assert filled.teacher_ids_T[size:].tolist() == [student.eos_id] * (-size % 16)
    assert len(filled.teacher_ids_T) % 16 == 0


def test_the_teacher_ends_at_the_last_chunk_that_the_student_holds(by_hand):
    build, _ = by_hand
    pair = build(response="d" * 40, student_length=BLOCK)
    assert pair.is_target_S.sum() == BLOCK - NUM_PROMPT
    assert len(pair.teacher_ids_T) == BLOCK
    assert len(build(response="d" * 40, teacher_length=30).chunks_C4) == 30 - NUM_PROMPT


def test_a_chunk_across_the_end_of_either_sequence_is_dropped(by_hand):
    build, _ = by_hand
    # ten d's and then abc, whose second token lies beyond 32
    pair = build(response="d" * 10 + "abc", student_length=BLOCK)
    assert len(pair.chunks_C4) == 10
    assert pair.student_ids_S[-1] == 256  # "ab" itself stays, and is learned
    assert len(pair.teacher_ids_T) == NUM_PROMPT + 10
    # the teacher is cut between a and bc
    assert len(build(response="d" * 10 + "abc", teacher_length=32).chunks_C4) == 10


def test_equal_bytes_with_unequal_ids_are_no_pair_of_a_shared_vocabulary(byte_tokenizer):
    student, teacher = byte_tokenizer(("a", "b")), byte_tokenizer(("b", "c"), ("a", "b"))
    shared = {**CROSS, "is_shared_vocab": True}
    pair = make_pair(record("hi", "abd"), student, teacher, **shared)  # "ab" is 256 and 257
    assert (pair.chunks_C4 - NUM_PROMPT).tolist() == [[1, 2, 1, 2]]


def test_text_that_only_one_template_puts_first_is_learned_and_in_no_chunk(byte_tokenizer):
    plain = byte_tokenizer().hf.chat_template
    lead = "{{ '<t>' if m.role == 'assistant' }}"
    student = byte_tokenizer(template=plain.replace("{{ m.content }}", lead + "{{ m.content }}"))
    teacher = byte_tokenizer()
    pair = make_pair(record("hi", "de"), student, teacher, **CROSS)
    assert pair.is_target_S.argmax() == NUM_PROMPT
    assert (pair.chunks_C4 - NUM_PROMPT).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5]]


@pytest.mark.parametrize(
    ("response", "changes", "reason"),
    [
        ("abc", {"student_length": 21, "block_size": 21}, "prompt_too_long"),
        ("abc", {"teacher_length": 21}, "prompt_too_long"),
        ("abc", {"student_length": 22, "block_size": 22}, "no_chunk"),
        ("abc", {"is_shared_vocab": True}, "no_chunk"),
        ("d<|mask|>", {}, "mask_token_in_text"),
        ("", {}, "empty_response"),
    ],
)
def test_a_record_that_cannot_serve_is_refused_with_its_reason(by_hand, response, changes, reason):
    build, _ = by_hand
    with pytest.raises(RecordError) as refusal:
        build(response=response, **changes)
    assert refusal.value.reason == reason


def test_a_mask_token_in_the_prompt_is_refused_too(byte_tokenizer):
    tokenizer = byte_tokenizer()
    with pytest.raises(RecordError, match=r"record r1.*mask token b'<\|mask\|>'"):
        make_pair(record("what is <|mask|>?", "d"), tokenizer, tokenizer, **CROSS)


@pytest.mark.parametrize(
    "changes",
    [
        {"student_length": 33},
        {"student_length": 0},
        {"block_size": 0},
        {"teacher_length": 33, "teacher_block_size": 32},
    ],
    ids=str,
)
def test_a_length_that_is_no_whole_number_of_blocks_is_a_recipe_error(by_hand, changes):
    build, _ = by_hand
    with pytest.raises(RecipeError, match="positive multiple of its block size"):
        build(**changes)
