"""Bidirectional by itself; reads a mask as booleans; published as a plain model. Like Dream."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .tiny_layers import Dense, Layer, TinyConfig, with_positions


class DreamLikeConfig(TinyConfig):
    model_type = "Dream"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class DreamLikeModel(PreTrainedModel):
    config_class = DreamLikeConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.layers = nn.ModuleList(
            Layer(size, Dense(size)) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(size)
        self.lm_head = nn.Linear(size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        use_cache=None,
        num_logits_to_keep=0,
        **loss_kwargs,
    ):
        if attention_mask is not None:
            attention_mask = attention_mask.to(torch.bool)
            if attention_mask.dim() == 2:
                attention_mask = attention_mask[:, None, None, :]
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        hidden = with_positions(self.embed_tokens(input_ids), position_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return MaskedLMOutput(logits=self.lm_head(self.norm(hidden)[:, -num_logits_to_keep:]))
