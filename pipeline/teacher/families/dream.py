"""Dream: 7B dense, bidirectional by itself, with a right shift, remote code.

It reads a 4-D mask as booleans: one that is meant to be added would show what it should hide.
"""

from pipeline.teacher.families.family import Family

DREAM = Family(
    name="dream",
    checkpoint="Dream-org/Dream-v0-Instruct-7B",
    model_types=frozenset({"Dream"}),
    attentions=frozenset({"full"}),
    mask_id=151666,
    mask_form="boolean",
    is_shifted=True,
    is_native=False,
)
