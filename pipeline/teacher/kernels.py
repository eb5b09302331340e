"""Which attention runs a native teacher: SDPA, flex attention, or flash-attn without padding.

Axes: B pass, T teacher position, N token of all passes end to end, h attention head, d its size.
"""

from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from pipeline.diffusion.flex import FLEX
from pipeline.teacher.families import Family
from storage_schemas.errors import TeacherError

Kernel = Literal["sdpa", "eager", "flex", "packed", "flash"]
PACKED: tuple[Kernel, ...] = ("packed", "flash")
"""Kernels that read the passes of a batch end to end, without padding and without a mask."""

_IMPLEMENTATIONS: dict[Kernel, str] = {
    "sdpa": "sdpa",
    "eager": "eager",
    "flex": FLEX,
    "packed": "tidecache_packed",
    "flash": "tidecache_packed",
}


def choose_kernel(
    asked: Literal["auto"] | Kernel,
    *,
    family: Family,
    is_block: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Kernel, str]:
    """The kernel, and why it is the one; one that cannot serve is refused."""
    can_flash, why_not = _can_flash(device, dtype)
    if asked == "auto":
        if not family.is_native:
            return family.implementation, "the family's own code chooses among what it knows"
        if device.type != "cuda":
            return ("sdpa", "a block mask on a CPU") if is_block else ("packed", "no padding")
        if is_block:
            return "flex", "a block mask on a GPU"
        return ("flash", "no padding") if can_flash else ("sdpa", why_not)
    if is_block and asked in PACKED:
        raise TeacherError(
            f"expected teacher.kernel 'sdpa', 'flex' or 'eager' with block attention, got "
            f"{asked!r}, which reads without a mask"
        )
    if asked == "flash" and not can_flash:
        raise TeacherError(f"teacher.kernel = 'flash' cannot serve: {why_not}; set it to 'auto'")
    return asked, "the recipe asks for it"


def implementation_of(kernel: Kernel) -> str:
    """What transformers calls it."""
    return _IMPLEMENTATIONS[kernel]


def _can_flash(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"flash-attn runs on GPUs, the teacher is on {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return False, f"flash-attn takes bfloat16 and float16, the teacher is in {dtype}"
    if find_spec("flash_attn") is None:
        return False, "flash-attn is not installed (pip install 'tidecache[flash]')"
    return True, ""


def packed_attention(
    module: nn.Module,
    query_1hNd: Tensor,
    key_1hNd: Tensor,
    value_1hNd: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_lengths: list[int],
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Each token sees its own pass, all of it, and no other; [1, N, h, d].

    By flash-attn on a GPU in half precision, else by SDPA, pass by pass.
    """
    assert attention_mask is None, "a packed batch needs no mask"
    if softcap is not None or s_aux is not None:
        raise TeacherError(
            f"expected plain attention without padding, got scores that {type(module).__name__} "
            f"caps or adds sinks to; set teacher.kernel = 'eager'"
        )
    qkv = (query_1hNd, key_1hNd, value_1hNd)
    if _can_flash(query_1hNd.device, query_1hNd.dtype)[0]:
        query, key, value = (states[0].transpose(0, 1) for states in qkv)
        return _flash(query, key, value, packed_lengths, scaling), None
    queries, keys, values = (torch.split(states, packed_lengths, dim=2) for states in qkv)
    grouped = query_1hNd.shape[1] != key_1hNd.shape[1]
    seen = [
        functional.scaled_dot_product_attention(q, k, v, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(seen, dim=2).transpose(1, 2).contiguous(), None


def _flash(
    query_Nhd: Tensor, key_Nhd: Tensor, value_Nhd: Tensor, lengths: list[int], scale: float | None
) -> Tensor:
    from flash_attn import (  # pyright: ignore[reportMissingImports]
        flash_attn_varlen_func,  # pyright: ignore[reportUnknownVariableType]
    )

    edges = functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(query_Nhd.device)
    seen_Nhd = cast("Any", flash_attn_varlen_func)(
        query_Nhd,
        key_Nhd,
        value_Nhd,
        cu_seqlens_q=edges,
        cu_seqlens_k=edges,
        max_seqlen_q=max(lengths),
        max_seqlen_k=max(lengths),
        softmax_scale=scale,
        causal=False,
    )
    return seen_Nhd[None]


# Without a mask function of that name, transformers makes no mask for it.
AttentionInterface.register(_IMPLEMENTATIONS["packed"], packed_attention)
