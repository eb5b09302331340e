"""What the tiny checkpoints with code of their own are made of: positions, attention, a body."""

import math

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    """Shapes alone; a checkpoint's own class adds its model_type."""

    def __init__(self, vocab_size=64, hidden_size=32, num_hidden_layers=2, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


def with_positions(hidden, position_ids):
    """Sines and cosines of the positions, added."""
    half = hidden.shape[-1] // 2
    rate = torch.exp(-torch.arange(half, device=hidden.device) * (math.log(100.0) / half))
    angle = position_ids[..., None].float() * rate
    return hidden + torch.cat([angle.sin(), angle.cos()], -1).to(hidden.dtype)


def causal(num_tokens, device):
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()


class Layer(nn.Module):
    """One head of attention under whatever mask comes, then a block of its own."""

    def __init__(self, size, block):
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(size), nn.RMSNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.block = block

    def forward(self, hidden, mask):
        q, k, v = (x[:, None] for x in self.qkv(self.norm_1(hidden)).chunk(3, -1))
        seen = scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0]
        hidden = hidden + self.out(seen)
        return hidden + self.block(self.norm_2(hidden))


class Dense(nn.Sequential):
    def __init__(self, size):
        super().__init__(nn.Linear(size, 2 * size), nn.SiLU(), nn.Linear(2 * size, size))


class Mixture(nn.Module):
    """Two of four experts for every token."""

    def __init__(self, size):
        super().__init__()
        self.gate = nn.Linear(size, 4)
        self.experts = nn.ModuleList(Dense(size) for _ in range(4))

    def forward(self, hidden):
        weight, chosen = self.gate(hidden).softmax(-1).topk(2, -1)
        share = torch.zeros(*hidden.shape[:-1], 4, dtype=hidden.dtype, device=hidden.device)
        share = share.scatter(-1, chosen, weight)
        return sum(share[..., i : i + 1] * expert(hidden) for i, expert in enumerate(self.experts))
