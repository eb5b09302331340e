"""What only a GPU can run: the student's training pass under flex attention, against SDPA."""

import pytest
import torch
from torch.testing import assert_close
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.config.models import StudentConfig
from pipeline.student.forward import attention_implementation, masked_hidden
from pipeline.student.kernels import choose_kernel, implementation_of
from pipeline.student.model import check_block_attention, load_student

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]
BLOCK, MASK = 32, 1023
TOLERANCE = {False: 2e-2, True: 6e-2}  # of the largest number; float32 here multiplies in TF32
SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
}


def make_model(kernel, **changes):
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE | changes)
    return Qwen3ForCausalLM._from_config(
        config, attn_implementation=implementation_of(kernel)
    ).cuda()


def batch(length, packed):
    """Three rows; packed, each holds two examples and 32 tokens of padding."""
    generator = torch.Generator().manual_seed(length)
    ids_BS = torch.randint(2, 1000, (3, length), generator=generator).cuda()
    is_masked_BS = (torch.rand(3, length, generator=generator) < 0.5).cuda()
    if not packed:
        return ids_BS, is_masked_BS, None
    place_S = torch.arange(length, device="cuda")
    example_S = (place_S >= 64).long() - 2 * (place_S >= length - 32).long()
    example_BS = torch.where(example_S < 0, -1, example_S + 2 * torch.arange(3).cuda()[:, None])
    return ids_BS, is_masked_BS & (example_BS >= 0), example_BS


def hidden_and_gradients(model, ids_BS, is_masked_BS, example_BS, *, bf16):
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        hidden_NH = masked_hidden(
            model, ids_BS, is_masked_BS, mask_id=MASK, block_size=BLOCK, example_BS=example_BS
        )
    weight_NH = torch.arange(hidden_NH.numel(), device="cuda").view_as(hidden_NH).sin()
    (hidden_NH.float() * weight_NH).sum().backward()
    return {"hidden": hidden_NH.detach().float()} | {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("heads", [(4, 2), (6, 2)], ids=["shared_keys", "repeated_keys"])
def test_flex_attention_trains_as_sdpa_does(bf16, packed, heads):
    changes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    models = [make_model(kernel, **changes) for kernel in ("sdpa", "flex")]
    for length in (128, 160, 320):
        want, got = (
            hidden_and_gradients(model, *batch(length, packed), bf16=bf16) for model in models
        )
        assert want.keys() == got.keys()
        for name, value in want.items():
            difference = (got[name] - value).abs().max()
            assert difference <= TOLERANCE[bf16] * value.abs().max(), name


def test_packed_rows_equal_unpacked_ones_under_flex_attention():
    model = make_model("flex").eval()
    ids_BS, is_masked_BS, example_BS = batch(320, packed=True)
    with torch.no_grad():
        got_NH = masked_hidden(
            model, ids_BS, is_masked_BS, mask_id=MASK, block_size=BLOCK, example_BS=example_BS
        )
        alone = []
        for row in range(3):
            for part in (slice(0, 64), slice(64, 288)):
                ids, mask = ids_BS[row : row + 1, part], is_masked_BS[row : row + 1, part]
                alone.append(masked_hidden(model, ids, mask, mask_id=MASK, block_size=BLOCK))
    assert_close(got_NH, torch.cat(alone), atol=2e-2, rtol=2e-2)


def test_a_gpu_takes_flex_attention_and_the_model_passes_its_check(tmp_path):
    kernel, _ = choose_kernel("auto", torch.device("cuda"))
    assert kernel == "flex"
    make_model("sdpa").save_pretrained(tmp_path)
    model = load_student(StudentConfig(model=str(tmp_path)), kernel=kernel).cuda()
    assert attention_implementation(model) == implementation_of("flex")
    check_block_attention(model, mask_id=MASK, block_size=BLOCK)


def test_gradient_checkpointing_goes_with_flex_attention():
    want = hidden_and_gradients(make_model("flex").train(), *batch(320, True), bf16=True)
    model = make_model("flex").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    got = hidden_and_gradients(model, *batch(320, True), bf16=True)
    for name, value in want.items():
        assert (got[name] - value).abs().max() <= TOLERANCE[True] * value.abs().max(), name


def test_more_shapes_than_torch_would_compile_still_run_compiled():
    model = make_model("flex").eval()
    peak = []
    for rows in range(1, 13):  # each number of rows is a shape
        ids_BS = torch.full((rows, 1024), 5, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            masked_hidden(model, ids_BS, ids_BS == 5, mask_id=MASK, block_size=BLOCK)
        peak.append((torch.cuda.max_memory_allocated() - before) / rows)
    # scores of all pairs, [4 heads, 2048, 2048] in float32, would be 64 MiB a row
    assert peak[-1] < 48 * 2**20
