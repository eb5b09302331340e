"""LLaDA2: mixture of experts, full bidirectional over the noised sequence only, remote code."""

from pipeline.teacher.families.family import Family

LLADA2 = Family(
    name="llada2",
    checkpoint="inclusionAI/LLaDA2.0-mini",
    attentions=frozenset({"full"}),
    mask_id=156895,
    mask_form="additive",
    is_shifted=False,
    is_native=False,
)
