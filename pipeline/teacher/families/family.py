"""What makes one family of teachers unlike another (method, sections 0 and 7)."""

from dataclasses import dataclass
from typing import Literal

MaskForm = Literal["tensor", "boolean", "additive", "by_layer_type", "padding"]
"""How a model's `forward` takes who may see whom.

tensor: [B, 1, Q, K] in the form that its attention kernel needs; boolean: the same, True = visible,
whatever the kernel; additive: the same as floats that are added to the scores; by_layer_type: a
dict of `tensor`s, by kind of layer; padding: [B, K] and nothing else, because the model is
bidirectional by itself. In a wrong form the model fails, or runs and sees what it should not.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family: how its checkpoints are read, and how they answer.

    checkpoint: the hub name of the best-known one. model_types: what its checkpoints' config.json
    calls them; empty where they are transformers' own. mask_id: of the token that stands for a
    masked one, None where the tokenizer knows it. is_shifted: the logits of position i - 1 predict
    token i. is_native: an architecture of transformers' own, which vLLM and other attention kernels
    may serve too; the others bring code of their own. implementation: the attention that
    transformers is asked for; `eager` also where the code knows no other name, whatever it runs.
    """

    name: str
    checkpoint: str | None
    model_types: frozenset[str]
    attentions: frozenset[Literal["full", "block"]]
    mask_id: int | None
    mask_form: MaskForm
    is_shifted: bool
    is_native: bool
    implementation: Literal["sdpa", "eager"] = "sdpa"
