"""Takes a dict of masks by kind of layer; any other mask is made causal. Like WeDLM."""

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .tiny_layers import Dense, Layer, TinyConfig, causal, with_positions


class WedlmLikeConfig(TinyConfig):
    model_type = "wedlm"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class WedlmLikeForCausalLM(PreTrainedModel):
    config_class = WedlmLikeConfig
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

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        if not isinstance(masks := attention_mask, dict):
            mask = causal(input_ids.shape[1], input_ids.device)
            masks = {"full_attention": mask, "sliding_attention": mask}
        hidden = with_positions(self.embed_tokens(input_ids), position_ids)
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, masks["sliding_attention" if i % 2 else "full_attention"])
        return CausalLMOutput(logits=self.lm_head(self.norm(hidden)))
