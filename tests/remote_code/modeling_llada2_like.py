"""A mixture of experts that adds a 4-D mask to its scores. Like LLaDA2."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .tiny_layers import Layer, Mixture, TinyConfig, with_positions


class Llada2LikeConfig(TinyConfig):
    model_type = "llada2_moe"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Llada2LikeBody(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size)
        self.layers = nn.ModuleList(
            Layer(size, Mixture(size)) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(size)

    def forward(self, ids, mask, position_ids):
        num_tokens = ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(num_tokens, device=ids.device)[None]
        if mask is not None:
            assert mask.dim() == 4, "a 4-D mask"
            mask = mask.to(self.norm.weight.dtype)  # True would be added as 1
        hidden = with_positions(self.word_embeddings(ids), position_ids)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.norm(hidden)


class Llada2LikeModelLM(PreTrainedModel):
    config_class = Llada2LikeConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.model = Llada2LikeBody(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.word_embeddings

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, **kwargs):
        hidden = self.model(input_ids, attention_mask, position_ids)
        return CausalLMOutput(logits=self.lm_head(hidden).float())
