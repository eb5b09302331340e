"""Tiny random models that vLLM serves, passes to ask them, and what a plain forward pass says."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipeline.config.models import TeacherConfig
from storage_schemas.views import TeacherPass

VOCAB, MASK, LENGTH = 601, 1, 160  # an odd vocabulary: its shards differ

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # the usual 0.02 would leave every distribution flat
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model, a family and an attention regime; block_size None: full attention."""

    model: str
    block_size: int | None = None
    family: str = "native"

    def __str__(self) -> str:
        regime = "full" if self.block_size is None else f"block{self.block_size}"
        return f"{self.model}-{self.family}-{regime}"

    def config(self, folder: Path, **settings) -> TeacherConfig:
        """The recipe's part on this teacher."""
        attention = {"type": "full"}
        if self.block_size is not None:
            attention = {"type": "block", "block_size": self.block_size}
        return TeacherConfig(
            model=str(folder),
            family=self.family,
            attention=attention,
            length=LENGTH,
            device="cpu",
            **{"dtype": "float32", "batch_tokens": 512, "backend": "vllm"} | settings,
        )

    def passes(self, seed: int = 0) -> list[TeacherPass]:
        """Two views of records of several lengths, some not whole blocks; one answers nothing."""
        rng = np.random.default_rng(seed)
        passes = []
        for length, share in ((24, 0.5), (8, 0.9), (100, 0.2), (16, 0.0), (32, 1.0), (45, 0.3)):
            clean_ids_T = rng.integers(2, VOCAB, length).astype(np.int32)
            for _ in range(2):
                is_answered_T = rng.random(length) < share
                is_answered_T[0] &= self.family != "native_shifted"
                passes.append(
                    TeacherPass(
                        clean_ids_T=clean_ids_T,
                        noised_ids_T=np.where(is_answered_T, np.int32(MASK), clean_ids_T),
                        is_answered_T=is_answered_T,
                        is_answered_C=np.zeros(0, np.bool_),
                    )
                )
        return passes

    @torch.no_grad()
    def plain_logits(self, model: PreTrainedModel, one: TeacherPass) -> torch.Tensor:
        """The logits [T, V] that predict the tokens of a pass, by an eager model and added masks.

        In block diffusion, block by block: the clean tokens before it, and the noised block.
        """
        num_tokens = len(one.noised_ids_T)
        if self.block_size is None:
            logits_TV = _logits(model, one.noised_ids_T, num_tokens)
            return logits_TV.roll(1, 0) if self.family == "native_shifted" else logits_TV
        parts = []
        for start in range(0, num_tokens, self.block_size):
            block = one.noised_ids_T[start : start + self.block_size]
            ids = np.concatenate([one.clean_ids_T[:start], block])
            parts.append(_logits(model, ids, self.block_size)[start:])
        return torch.cat(parts)


def _logits(model: PreTrainedModel, ids: np.ndarray, block_size: int) -> torch.Tensor:
    block = torch.arange(len(ids)) // block_size
    mask = torch.zeros(len(ids), len(ids))
    mask[block[:, None] < block[None, :]] = torch.finfo(torch.float32).min
    return model(
        input_ids=torch.from_numpy(ids).long()[None], attention_mask=mask[None, None]
    ).logits[0]


class Checkpoints:
    """Folders of tiny models by name, each written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str) -> Path:
        folder = self._folder / name
        if not folder.exists():
            torch.manual_seed(0)
            _MODELS[name]().save_pretrained(folder)
        return folder

    def plain(self, name: str) -> PreTrainedModel:
        """The model itself, eager, in float32."""
        return AutoModelForCausalLM.from_pretrained(
            self(name), attn_implementation="eager", dtype=torch.float32
        ).eval()


_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=32, tie_word_embeddings=True, **_SHAPE)),
    "moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(head_dim=32, **_EXPERTS, **_SHAPE)),
    "narrow": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=16, **_SHAPE)),
    "window": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            head_dim=32, use_sliding_window=True, sliding_window=8, max_window_layers=1, **_SHAPE
        )
    ),
}
