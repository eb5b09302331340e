"""vLLM's attention made bidirectional: over the whole sequence, or block by block.

vLLM calls a layer `Attention` and builds it inside each model's own constructor.
"""
# pyright: basic, reportMissingImports=false
# (vLLM is an extra, and the checks run without it)

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import subclass_attention_backend
from vllm.v1.attention.selector import get_attn_backend


class BlockAttention(Attention):
    """Cached attention without a causal mask: a query sees every key that is there already.

    With prefill in chunks of exactly one diffusion block (`BlockScheduler`), those are the keys of
    the query's own block and of earlier blocks: the block-causal mask.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        cache_config: Any = None,
        **options: Any,
    ) -> None:
        cache_dtype = "auto" if cache_config is None else cache_config.cache_dtype
        backend = get_attn_backend(head_size, torch.get_default_dtype(), cache_dtype)
        super().__init__(
            num_heads,
            head_size,
            scale,
            cache_config=cache_config,
            attn_backend=_without_causal_mask(backend),
            **options,
        )


@lru_cache
def _without_causal_mask(backend: Any) -> Any:
    class Builder(backend.get_builder_cls()):
        def build(
            self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
        ) -> Any:
            everyone = copy(common_attn_metadata)
            everyone.causal = False
            return super().build(common_prefix_len, everyone, fast_build)

    return subclass_attention_backend("TidecacheBlock", backend, Builder)


@contextmanager
def built_with(module: Any, attention: type[Attention]) -> Iterator[None]:
    """Inside, the models of a vLLM module build their layers with this attention class."""
    stock = module.Attention
    module.Attention = attention
    try:
        yield
    finally:
        module.Attention = stock


def assert_all_are(model: torch.nn.Module, attention: type[Attention]) -> None:
    """Every attention layer of a model is of this class, and none has a window."""
    layers = [layer for layer in model.modules() if isinstance(layer, Attention)]
    assert layers, "a teacher without attention layers"
    stock = [layer for layer in layers if not isinstance(layer, attention)]
    assert not stock, f"{len(stock)} layers attend as {type(stock[0]).__name__}"
    windows = [layer for layer in layers if layer.sliding_window is not None]
    assert not windows, f"{len(windows)} layers see a sliding window only"
