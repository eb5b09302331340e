"""Qwen2, Qwen3, Qwen3-MoE and Llama weights run bidirectionally, or block-wise over [x_0, x_t]."""

from pipeline.teacher.families.family import Family

NATIVE = Family(
    name="native",
    checkpoint=None,
    model_types=frozenset(),
    attentions=frozenset({"full", "block"}),
    mask_id=None,
    mask_form="tensor",
    is_shifted=False,
    is_native=True,
)

NATIVE_SHIFTED = Family(
    name="native_shifted",
    checkpoint=None,
    model_types=frozenset(),
    attentions=frozenset({"full"}),
    mask_id=None,
    mask_form="tensor",
    is_shifted=True,
    is_native=True,
)
