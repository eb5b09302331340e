"""Our model classes: vLLM's own, with bidirectional attention, and rows instead of tokens."""
# pyright: basic, reportMissingImports=false
# (vLLM is an extra, and the checks run without it)

from types import ModuleType
from typing import Any, ClassVar

from vllm.model_executor.layers.attention import EncoderOnlyAttention
from vllm.model_executor.models import llama, qwen2, qwen3, qwen3_moe

from pipeline.teacher.vllm_plugin.attention import BlockAttention, assert_all_are, built_with
from pipeline.teacher.vllm_plugin.pooler import BlockRowPooler, RowPooler

_Mixed: Any = object  # these two stand before a class of vLLM's among a model's bases


class _Full(_Mixed):
    """Every token sees every token.

    Most stock classes choose such attention where the configuration says `is_causal = False`; the
    mixture of experts ignores that without a word, hence `built_with`.
    """

    is_pooling_model: ClassVar[bool] = True
    attn_type: ClassVar[str] = "encoder_only"
    module: ClassVar[ModuleType]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        with built_with(self.module, EncoderOnlyAttention):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        assert_all_are(self, EncoderOnlyAttention)
        self.pooler = RowPooler(self.compute_logits, config.vocab_size)


class _Block(_Mixed):
    """A token sees its own diffusion block and the earlier ones."""

    is_pooling_model: ClassVar[bool] = True
    module: ClassVar[ModuleType]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        with built_with(self.module, BlockAttention):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        assert_all_are(self, BlockAttention)
        self.pooler = BlockRowPooler(
            self.compute_logits, config.vocab_size, config.tidecache_block_size
        )


class TidecacheLlamaFull(_Full, llama.LlamaForCausalLM):
    """Llama over the whole sequence."""

    module = llama


class TidecacheLlamaBlock(_Block, llama.LlamaForCausalLM):
    """Llama block by block."""

    module = llama


class TidecacheQwen2Full(_Full, qwen2.Qwen2ForCausalLM):
    """Qwen2 over the whole sequence."""

    module = qwen2


class TidecacheQwen2Block(_Block, qwen2.Qwen2ForCausalLM):
    """Qwen2 block by block."""

    module = qwen2


class TidecacheQwen3Full(_Full, qwen3.Qwen3ForCausalLM):
    """Qwen3 over the whole sequence."""

    module = qwen3


class TidecacheQwen3Block(_Block, qwen3.Qwen3ForCausalLM):
    """Qwen3 block by block."""

    module = qwen3


class TidecacheQwen3MoeFull(_Full, qwen3_moe.Qwen3MoeForCausalLM):
    """Qwen3's mixture of experts over the whole sequence."""

    module = qwen3_moe


class TidecacheQwen3MoeBlock(_Block, qwen3_moe.Qwen3MoeForCausalLM):
    """Qwen3's mixture of experts block by block."""

    module = qwen3_moe
