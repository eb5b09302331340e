"""LLaDA: 8B dense, bidirectional by itself, without positions of its own, remote code.

Its code names no attention that transformers could choose, and some of its revisions leave a
padding mask unread: a backend has to try whether padding is hidden.
"""

from pipeline.teacher.families.family import Family

LLADA = Family(
    name="llada",
    checkpoint="GSAI-ML/LLaDA-8B-Instruct",
    model_types=frozenset({"llada"}),
    attentions=frozenset({"full"}),
    mask_id=126336,
    mask_form="padding",
    is_shifted=False,
    is_native=False,
    implementation="eager",
)
