"""LLaDA2: mixture of experts, full bidirectional over the noised sequence only, remote code.

Under eager attention its code would read an added mask the wrong way round: it needs SDPA.
"""

from pipeline.teacher.families.family import Family

LLADA2 = Family(
    name="llada2",
    checkpoint="inclusionAI/LLaDA2.0-mini",
    model_types=frozenset({"llada2_moe"}),
    attentions=frozenset({"full"}),
    mask_id=156895,
    mask_form="additive",
    is_shifted=False,
    is_native=False,
)
