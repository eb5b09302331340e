"""WeDLM: 8B dense, the block-diffusion mask over [x_0, x_t], Qwen's vocabulary, remote code.

Only a dict of masks is taken as it is; any other form is made causal. The checkpoint was trained to
read each block causally, its masked tokens moved to the end; the paper's pipeline B asks it under
the block-diffusion mask all the same, and so do we.
"""

from pipeline.teacher.families.family import Family

WEDLM = Family(
    name="wedlm",
    checkpoint="tencent/WeDLM-8B-Instruct",
    model_types=frozenset({"wedlm"}),
    attentions=frozenset({"block"}),
    mask_id=151665,
    mask_form="by_layer_type",
    is_shifted=False,
    is_native=False,
)
