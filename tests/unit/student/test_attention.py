"""Packed rows, flex attention and SDPA give the same hidden states; masks are made once.

Axes: B row, S student position, N masked position, H hidden size.
"""

import pytest
import torch
from torch.testing import assert_close
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.diffusion.block_mask import full_sight
from pipeline.diffusion.flex import FLEX, _compiled_attention, flex_attention, flex_mask
from pipeline.student.attention import attention_arguments
from pipeline.student.forward import masked_hidden
from pipeline.student.kernels import choose_kernel, implementation_of
from storage_schemas.errors import RecipeError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BLOCK, MASK = 8, 127
EXACT = {"atol": 1e-12, "rtol": 1e-9}  # float64
SINGLE = {"atol": 2e-5, "rtol": 1e-5}  # float32, two layers
HALF = 3e-2  # bfloat16: of the largest hidden number
LENGTHS = (24, 8, 40, 16)
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


def student(attention="sdpa", dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE | changes)
    return Qwen3ForCausalLM._from_config(config, attn_implementation=attention, dtype=dtype)


def texts(lengths=LENGTHS):
    """Tokens and masks of examples of these lengths."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randint(0, 127, (n,), generator=generator),
         torch.rand(n, generator=generator) < 0.5)
        for n in lengths
    ]  # fmt: skip


def rows(places, num_rows, length, lengths=LENGTHS):
    """The examples at these (row, start): ids, masks, examples."""
    ids_BS = torch.full((num_rows, length), 77)
    is_masked_BS = torch.zeros(num_rows, length, dtype=torch.bool)
    example_BS = torch.full((num_rows, length), -1)
    for e, ((row, start), (ids_S, is_masked_S)) in enumerate(
        zip(places, texts(lengths), strict=True)
    ):
        at = slice(start, start + len(ids_S))
        ids_BS[row, at], is_masked_BS[row, at], example_BS[row, at] = ids_S, is_masked_S, e
    return ids_BS, is_masked_BS, example_BS


def hidden(model, ids_BS, is_masked_BS, example_BS):
    return masked_hidden(
        model, ids_BS, is_masked_BS, mask_id=MASK, block_size=BLOCK, example_BS=example_BS
    )


def hidden_and_gradients(model, ids_BS, is_masked_BS, example_BS):
    """Hidden states in order of example, and the gradients of a sum that weighs each one."""
    model.zero_grad()
    hidden_NH = hidden(model, ids_BS, is_masked_BS, example_BS)
    if example_BS is not None:
        hidden_NH = hidden_NH[example_BS[is_masked_BS].argsort(stable=True)]
    weight_NH = torch.arange(hidden_NH.numel()).reshape(hidden_NH.shape).to(hidden_NH).sin()
    (hidden_NH * weight_NH).sum().backward()
    return hidden_NH.detach(), {n: p.grad for n, p in model.named_parameters() if "head" not in n}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("places", "num_rows", "length"),
    [
        ([(0, 0), (0, 24), (1, 0), (0, 32)], 2, 48),  # padding at a row's end
        ([(0, 40), (0, 64), (0, 0), (0, 72)], 1, 88),  # all in one row, in another order
        ([(1, 0), (0, 16), (2, 8), (0, 32)], 3, 48),  # padding before and between
    ],
    ids=["rows", "one", "gaps"],
)
def test_packed_rows_give_the_hidden_states_and_gradients_of_unpacked_ones(
    attention, places, num_rows, length
):
    model = student(attention, torch.float64)
    alone = rows([(e, 0) for e in range(4)], 4, 40)
    want_NH, want_gradients = hidden_and_gradients(model, *alone[:2], None)
    got_NH, gradients = hidden_and_gradients(model, *rows(places, num_rows, length))
    tolerance = EXACT if attention == "sdpa" else SINGLE  # eager's softmax is in float32
    assert_close(got_NH, want_NH, **tolerance)
    assert_close(gradients, want_gradients, **tolerance)


def test_packed_examples_may_end_inside_a_block():
    lengths = (5, 8, 11)
    model = student(dtype=torch.float64)
    got_NH, gradients = hidden_and_gradients(
        model, *rows([(0, 0), (0, 5), (0, 13)], 1, 24, lengths)
    )
    want, want_gradients = [], {}
    for ids_S, is_masked_S in texts(lengths):
        want.append(hidden(model, ids_S[None], is_masked_S[None], None))
    assert_close(got_NH, torch.cat(want).detach(), **EXACT)
    padded = rows([(0, 0), (1, 0), (2, 0)], 3, 16, lengths)
    _, want_gradients = hidden_and_gradients(model, *padded)
    assert_close(gradients, want_gradients, **EXACT)


def test_a_neighbour_in_the_row_changes_nothing():
    model = student().eval()
    ids_BS, is_masked_BS, example_BS = rows([(0, 0), (0, 24), (1, 0), (0, 32)], 2, 48)
    other_BS = torch.where(example_BS == 1, (ids_BS + 1) % 127, ids_BS)
    is_of_others_N = (example_BS != 1)[is_masked_BS]
    with torch.no_grad():
        before, after = (hidden(model, x, is_masked_BS, example_BS) for x in (ids_BS, other_BS))
    assert torch.equal(after[is_of_others_N], before[is_of_others_N])
    assert not torch.equal(after[~is_of_others_N], before[~is_of_others_N])


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)], ids=["shared_keys", "repeated_keys"])
def test_flex_attention_agrees_with_sdpa_in_padded_and_packed_rows(heads):
    changes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    models = [student(attention, **changes).eval() for attention in ("sdpa", FLEX)]
    packed = rows([(0, 0), (0, 24), (1, 0), (0, 32)], 2, 48)
    padded = rows([(e, 0) for e in range(4)], 4, 40)
    for batch in (packed, (*padded[:2], None), padded):
        with torch.no_grad():
            want, got = (hidden(model, *batch) for model in models)
        assert_close(got, want, **SINGLE)


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_under_autocast_takes_queries_and_values_of_two_dtypes():
    packed = rows([(0, 0), (0, 24), (1, 0), (0, 32)], 2, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want, got = (hidden(student(attention).eval(), *packed) for attention in ("sdpa", FLEX))
    assert (got - want).abs().max() <= HALF * want.abs().max()


@pytest.mark.filterwarnings("ignore")
def test_lengths_that_pad_to_the_same_are_compiled_once():
    model = student(FLEX).eval()
    torch._dynamo.reset()
    _compiled_attention.cache_clear()
    counted = torch._dynamo.utils.counters["stats"]
    with torch.no_grad():
        before = counted["unique_graphs"]
        for length in (40, 48, 56, 64):  # 80 to 128 places, one tile
            ids_BS = torch.arange(2 * length).reshape(2, length) % 127
            hidden(model, ids_BS, ids_BS % 2 == 0, None)
        assert counted["unique_graphs"] == before + 1


def test_attention_that_flex_does_not_compute_is_refused():
    states, mask = torch.zeros(1, 2, 128, 8), flex_mask(full_sight(torch.ones(1, 128).bool()))
    for option in ({"softcap": 50.0}, {"s_aux": torch.zeros(2)}, {"dropout": 0.1}):
        with pytest.raises(RecipeError, match=r"plain attention for kernel 'flex'.*'sdpa'"):
            flex_attention(torch.nn.Identity(), states, states, states, mask, **option)


def _arguments(shape, example_BS=None):
    return attention_arguments(
        shape, example_BS, BLOCK, implementation="sdpa", device=CPU, dtype=torch.float32
    )


def test_batches_of_one_length_share_one_mask():
    first, second = _arguments((2, 24)), _arguments((5, 24))
    assert first["attention_mask"] is second["attention_mask"]
    assert first["attention_mask"].shape == (1, 1, 48, 48)
    assert second["position_ids"].shape == (5, 48)


def test_a_mask_made_in_an_evaluation_serves_training():
    model, length = student(), 72  # a length of no other test: the mask is made here
    ids_BS = torch.arange(length)[None]
    with torch.inference_mode():
        want = hidden(model, ids_BS, ids_BS % 2 == 0, None)
    got = hidden(model, ids_BS, ids_BS % 2 == 0, None)
    got.sum().backward()
    assert torch.equal(got.detach(), want)


@pytest.mark.parametrize(
    ("asked", "device", "kernel"),
    [("auto", CPU, "sdpa"), ("auto", GPU, "flex"), ("sdpa", GPU, "sdpa"), ("flex", GPU, "flex")],
)
def test_the_device_chooses_the_kernel(asked, device, kernel):
    got, why = choose_kernel(asked, device)
    assert got == kernel
    assert why


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_is_refused_for_training_on_a_cpu():
    with pytest.raises(RecipeError, match=r"'sdpa' or 'auto' on cpu, got 'flex'.*backward"):
        choose_kernel("flex", CPU)
    model = student(implementation_of("flex"))
    with pytest.raises(NotImplementedError, match="backward"):  # the reason why
        hidden(model, torch.arange(24)[None], torch.ones(1, 24, dtype=torch.bool), None)
