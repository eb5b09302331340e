"""The block-diffusion forward pass, with the head at masked positions only (TIDE section 2).

Axes: B example, S student position, N masked position (flattened), H hidden size, V vocabulary.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.diffusion.block_mask import as_attention_mask, block_diffusion_mask, hide_padding


def masked_hidden(
    model: PreTrainedModel,
    clean_ids_BS: Int[Tensor, "B S"],
    is_masked_BS: Bool[Tensor, "B S"],
    is_real_BS: Bool[Tensor, "B S"],
    *,
    mask_id: int,
    block_size: int,
) -> Float[Tensor, "N H"]:
    """Final hidden states of the masked positions, in order of example and position.

    The model reads [x_t, x_0] (2 S tokens, positions repeated) under the block-diffusion mask, so a
    masked token sees its own noised block and the clean blocks before it.
    """
    num_tokens = clean_ids_BS.shape[1]
    noised_ids_BS = clean_ids_BS.masked_fill(is_masked_BS, mask_id)
    visible = block_diffusion_mask(num_tokens, block_size).to(clean_ids_BS.device)
    position_S = torch.arange(num_tokens, device=clean_ids_BS.device)
    output = base_model(model)(
        input_ids=torch.cat([noised_ids_BS, clean_ids_BS], 1),
        attention_mask=as_attention_mask(
            hide_padding(visible, is_real_BS.repeat(1, 2)),
            implementation=attention_implementation(model),
            dtype=model.dtype,
        ),
        position_ids=position_S.repeat(2)[None].expand(len(clean_ids_BS), -1),
        use_cache=False,
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
    """Which attention runs: `sdpa` or `eager`."""
    config = cast("Any", model.config)
    return str(config._attn_implementation)
