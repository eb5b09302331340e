"""What only a GPU can run: flash-attn and flex attention against SDPA, in half precision."""

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.teacher.families import family_named
from pipeline.teacher.keep import KeepHidden
from pipeline.teacher.kernels import choose_kernel, implementation_of
from pipeline.teacher.transformers_backend import TransformersBackend
from storage_schemas.views import TeacherPass

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TOLERANCE = {torch.bfloat16: 6e-2, torch.float16: 1e-2}  # of the largest hidden number


def hidden_of(folder, kernel, block_size, dtype) -> np.ndarray:
    rng = np.random.default_rng(0)
    passes = []
    for length in (200, 64, 131):
        ids_T = rng.integers(2, 1000, length).astype(np.int32)
        passes.append(
            TeacherPass(
                clean_ids_T=ids_T,
                noised_ids_T=np.where(rng.random(length) < 0.5, np.int32(1), ids_T),
                is_answered_T=np.ones(length, np.bool_),
                is_answered_C=np.zeros(0, np.bool_),
            )
        )
    model = Qwen3ForCausalLM.from_pretrained(
        folder, attn_implementation=implementation_of(kernel), dtype=dtype
    ).cuda()
    backend = TransformersBackend(model, block_size=block_size, batch_tokens=4096, kernel=kernel)
    blocks = list(backend.rows(passes, KeepHidden()))
    return np.concatenate([block.kept.hidden_MH for block in blocks])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("kernel", "block_size"), [("flash", None), ("flex", None), ("flex", 32)])
@pytest.mark.filterwarnings("ignore")
def test_kernels_agree_within_the_dtypes_tolerance(tmp_path, kernel, block_size, dtype):
    if kernel == "flash":
        pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, intermediate_size=512,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    want, got = (hidden_of(tmp_path, k, block_size, dtype) for k in ("sdpa", kernel))
    assert np.abs(got - want).max() <= TOLERANCE[dtype] * np.abs(want).max()


def test_a_gpu_in_half_precision_runs_full_attention_without_padding():
    pytest.importorskip("flash_attn")
    kernel, _ = choose_kernel(
        "auto",
        family=family_named("native"),
        is_block=False,
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
    )
    assert kernel == "flash"
