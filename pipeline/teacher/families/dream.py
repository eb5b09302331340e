"""Dream: 7B dense, full bidirectional attention with a right shift, remote code."""

from pipeline.teacher.families.family import Family

DREAM = Family(
    name="dream",
    checkpoint="Dream-org/Dream-v0-Instruct-7B",
    attentions=frozenset({"full"}),
    mask_id=None,
    mask_form="additive",
    is_shifted=True,
    is_native=False,
)
