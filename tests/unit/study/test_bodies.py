"""What counts as Python, and how much of a body is matched."""

import pytest

from pipeline.study.bodies import is_python, token_match
from storage_schemas.examples import Message, Record

PROMPT = 'def area(self, r):\n    """Of a circle."""'
RECORD = Record(
    id="x.py::area",
    messages=(Message(role="user", content=PROMPT), Message(role="assistant", content="")),
    where="x.py:1",
)


@pytest.mark.parametrize(
    ("body", "is_cut", "expected"),
    [
        ("    return 3 * r", False, True),
        ("    return (3 *", False, False),
        ("    return 3 * r\n    return (3 *", True, True),  # the last line was cut off
        ("return 3 * r", False, False),  # outside the function
        ("", False, False),  # a docstring alone is no body
        ("    x = 1\nprint(x)", False, False),
        ("    x\0", False, False),
    ],
)
def test_a_body_is_python_if_prompt_and_body_are_one_function(
    body: str, is_cut: bool, expected: bool
):
    assert is_python(RECORD, body, is_cut=is_cut) == expected


def test_the_match_of_tokens_is_worked_by_hand():
    assert token_match([1, 2, 3], [1, 2, 3]) == 1
    assert token_match([1, 2], [3, 4]) == 0
    assert token_match([1, 2, 9, 3], [1, 2, 3, 4]) == 2 * 3 / 8  # 1 2 and 3
