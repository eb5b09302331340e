"""WeDLM: 8B dense, the block-diffusion mask over [x_0, x_t], Qwen's vocabulary, remote code."""

from pipeline.teacher.families.family import Family

WEDLM = Family(
    name="wedlm",
    checkpoint="tencent/WeDLM-8B-Instruct",
    attentions=frozenset({"block"}),
    mask_id=151665,
    mask_form="by_layer_type",
    is_shifted=False,
    is_native=False,
)
