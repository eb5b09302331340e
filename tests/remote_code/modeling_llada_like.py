"""Bidirectional by itself, with a padding mask, no positions, and a head named ff_out. Like LLaDA.

`reads_padding = false` leaves the mask unread, as some of the published code does.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .tiny_layers import Dense, Layer, TinyConfig, with_positions


class LladaLikeConfig(TinyConfig):
    model_type = "llada"

    def __init__(self, reads_padding=True, **kwargs):
        self.reads_padding = reads_padding
        super().__init__(**kwargs)


class LladaLikeBody(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.reads_padding = config.reads_padding
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, size),
                "blocks": nn.ModuleList(
                    Layer(size, Dense(size)) for _ in range(config.num_hidden_layers)
                ),
                "ln_f": nn.RMSNorm(size),
                "ff_out": nn.Linear(size, config.vocab_size, bias=False),
            }
        )

    def forward(self, ids, mask):
        position_ids = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = with_positions(self.transformer["wte"](ids), position_ids)
        mask = mask.bool()[:, None, None, :] if mask is not None and self.reads_padding else None
        for block in self.transformer["blocks"]:
            hidden = block(hidden, mask)
        return self.transformer["ff_out"](self.transformer["ln_f"](hidden))


class LladaLikeModelLM(PreTrainedModel):
    config_class = LladaLikeConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = LladaLikeBody(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.transformer["wte"]

    def get_output_embeddings(self):
        return self.model.transformer["ff_out"]

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return CausalLMOutput(logits=self.model(input_ids, attention_mask))
