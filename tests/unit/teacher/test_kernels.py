"""Every attention kernel gives the same rows, and the device chooses among them."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipeline.teacher.attention import _sight, visible_tokens
from pipeline.teacher.families import family_named
from pipeline.teacher.keep import KeepHidden
from pipeline.teacher.kernels import choose_kernel, implementation_of, packed_attention
from pipeline.teacher.transformers_backend import TransformersBackend
from storage_schemas.errors import TeacherError
from storage_schemas.views import TeacherPass

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
NATIVE = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**{k: v for k, v in SHAPE.items() if k != "head_dim"})),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE)),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**MOE, **SHAPE)),
}


def make_passes() -> list[TeacherPass]:
    rng = np.random.default_rng(0)
    made = []
    for length in (24, 8, 16, 17, 3):
        ids_T = rng.integers(2, 128, length).astype(np.int32)
        is_answered_T = rng.random(length) < 0.5
        is_answered_T[1] = True
        made.append(
            TeacherPass(
                clean_ids_T=ids_T,
                noised_ids_T=np.where(is_answered_T, np.int32(1), ids_T),
                is_answered_T=is_answered_T,
                is_answered_C=np.zeros(0, np.bool_),
            )
        )
    return made


def hidden_of(folder, kernel: str, *, block_size: int | None) -> np.ndarray:
    """The kept hidden states of all passes, in order."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=implementation_of(kernel), dtype=torch.float32
    )
    backend = TransformersBackend(model, block_size=block_size, batch_tokens=512, kernel=kernel)
    blocks = list(backend.rows(make_passes(), KeepHidden()))
    keys = [np.stack([block.pass_M, block.position_M]) for block in blocks]
    order = np.lexsort(np.concatenate(keys, axis=1)[::-1])
    return np.concatenate([block.kept.hidden_MH for block in blocks])[order]


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("kernel", ["packed", "eager"])
def test_kernels_for_full_attention_agree(tmp_path, name, kernel):
    kind, config = NATIVE[name]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    want, got = (hidden_of(tmp_path, k, block_size=None) for k in ("sdpa", kernel))
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("batch_tokens", [1, 20, 33, 68, 512])
def test_a_packed_batch_holds_no_more_than_batch_tokens(batch_tokens):
    kind, config = NATIVE["qwen3"]
    model = kind(config)
    model.set_attn_implementation(implementation_of("packed"))
    backend = TransformersBackend(
        model, block_size=None, batch_tokens=batch_tokens, kernel="packed"
    )
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    passes = make_passes()
    list(backend.rows(passes, KeepHidden()))
    lengths = [len(one.clean_ids_T) for one in passes]
    assert sum(tokens for _, tokens in shapes) == sum(lengths), "no padding"
    # a pass that is longer than the budget runs alone
    assert all(rows == 1 and (n <= batch_tokens or n in lengths) for rows, n in shapes)


def test_scores_that_are_capped_are_no_case_for_a_packed_batch():
    states = torch.zeros(1, 2, 4, 8)
    with pytest.raises(TeacherError, match=r"plain attention.*kernel = 'eager'"):
        packed_attention(
            torch.nn.Identity(), states, states, states, None, packed_lengths=[4], softcap=50.0
        )


@pytest.mark.parametrize("name", ["qwen3", "qwen3-moe"])
@pytest.mark.parametrize("block_size", [None, 8], ids=["full", "block"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_flex_attention_agrees_with_sdpa(tmp_path, name, block_size):
    kind, config = NATIVE[name]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    want, got = (hidden_of(tmp_path, k, block_size=block_size) for k in ("sdpa", "flex"))
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("block_size", [None, 1, 5, 8, 64])
@pytest.mark.parametrize("lengths", [[24], [24, 7, 1], [16, 16]])
def test_flex_attention_sees_what_sdpa_sees(block_size, lengths):
    is_real_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    want_BQK = visible_tokens(is_real_BT, block_size)[:, 0]
    is_real_BQ = is_real_BT if block_size is None else is_real_BT.repeat(1, 2)
    got_BQK = _sight(is_real_BT, block_size).dense()[:, 0]
    assert torch.equal(got_BQK[is_real_BQ], want_BQK[is_real_BQ])
    assert (got_BQK[~is_real_BQ].sum(1) == 1).all(), "padding sees itself"


@pytest.mark.parametrize(
    ("device", "is_block", "dtype", "want"),
    [
        (CPU, False, torch.float32, "packed"),
        (CPU, True, torch.bfloat16, "sdpa"),
        (GPU, True, torch.bfloat16, "flex"),
        (GPU, False, torch.float32, "sdpa"),
    ],
)
def test_the_device_and_the_mask_choose(device, is_block, dtype, want):
    kernel, why = choose_kernel(
        "auto", family=family_named("native"), is_block=is_block, device=device, dtype=dtype
    )
    assert kernel == want
    assert why


@pytest.mark.parametrize("name", ["llada", "llada2", "wedlm", "dream"])
def test_code_of_its_own_chooses_its_own_attention(name):
    family = family_named(name)
    options = {"family": family, "is_block": False, "device": GPU, "dtype": torch.bfloat16}
    assert choose_kernel("auto", **options)[0] == family.implementation


@pytest.mark.parametrize(
    ("asked", "is_block", "dtype", "message"),
    [
        ("packed", True, torch.float32, r"'sdpa', 'flex' or 'eager' with block.*'packed'"),
        ("flash", False, torch.bfloat16, r"'flash' cannot serve.*GPUs.*cpu.*'auto'"),
    ],
)
def test_a_kernel_that_cannot_serve_is_refused(asked, is_block, dtype, message):
    with pytest.raises(TeacherError, match=message):
        choose_kernel(
            asked, family=family_named("native"), is_block=is_block, device=CPU, dtype=dtype
        )
