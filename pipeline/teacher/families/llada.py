"""LLaDA: 8B dense, full bidirectional attention, remote code."""

from pipeline.teacher.families.family import Family

LLADA = Family(
    name="llada",
    checkpoint="GSAI-ML/LLaDA-8B-Instruct",
    attentions=frozenset({"full"}),
    mask_id=126336,
    mask_form="padding",
    is_shifted=False,
    is_native=False,
)
