"""The block-diffusion forward pass, with the head at masked positions only (TIDE section 2).

Axes: B row, S student position, N masked position (flattened), H hidden size, V vocabulary.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.student.attention import attention_arguments


def masked_hidden(
    model: PreTrainedModel,
    clean_ids_BS: Int[Tensor, "B S"],
    is_masked_BS: Bool[Tensor, "B S"],
    *,
    mask_id: int,
    block_size: int,
    example_BS: Int[Tensor, "B S"] | None = None,
) -> Float[Tensor, "N H"]:
    """Final hidden states of the masked positions, in order of row and position.

    The model reads [x_t, x_0] (2 S tokens, positions repeated) under the block-diffusion mask, so a
    masked token sees its own noised block and the clean blocks before it.

    `example_BS` tells apart the examples that share a row, one after the other; -1 is padding.
    Without it each row is one example, padded after whole blocks or not at all.
    """
    num_rows, num_tokens = clean_ids_BS.shape
    noised_ids_BS = clean_ids_BS.masked_fill(is_masked_BS, mask_id)
    output = base_model(model)(
        input_ids=torch.cat([noised_ids_BS, clean_ids_BS], 1),
        use_cache=False,
        **attention_arguments(
            (num_rows, num_tokens),
            example_BS,
            block_size,
            implementation=attention_implementation(model),
            device=clean_ids_BS.device,
            dtype=model.dtype,
        ),
    )
    hidden_BSH = cast("Tensor", output.last_hidden_state)[:, :num_tokens]
    return hidden_BSH[is_masked_BS]


def base_model(model: PreTrainedModel) -> nn.Module:
    """The model without its head (`model.model` of a Qwen-like causal LM)."""
    return cast("nn.Module", model.get_decoder())


def head(model: PreTrainedModel) -> nn.Module:
    """The head: hidden states to logits."""
    return cast("nn.Module", model.get_output_embeddings())


def attention_implementation(model: PreTrainedModel) -> str:
    """Which attention runs: `sdpa`, `eager`, or flex attention by our name."""
    config = cast("Any", model.config)
    return str(config._attn_implementation)
