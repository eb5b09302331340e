"""A step's tokens and how certain they are. Axes: N masked position, V vocabulary."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pipeline.generate.draw import draw_tokens

# softmax of these: 1/8, 4/8, 1/8, 2/8; without token 1, 1/4, 0, 1/4, 2/4
LOGITS = torch.tensor([1.0, 4.0, 1.0, 2.0]).log()
NO_MASK = -1


def draw(uniforms, *, temperature, mask_id=NO_MASK, logits_V=LOGITS):
    uniform_N = torch.tensor(uniforms, dtype=torch.float64)
    logits_NV = logits_V.expand(len(uniforms), -1)
    ids_N, p_N = draw_tokens(logits_NV, uniform_N, temperature=temperature, mask_id=mask_id)
    return ids_N.tolist(), p_N


def test_without_temperature_the_likeliest_token_is_taken_at_its_probability():
    ids, p_N = draw([0.0, 0.99], temperature=0)
    assert ids == [1, 1]
    assert_close(p_N, torch.tensor([0.5, 0.5]))


def test_the_mask_token_is_never_drawn_and_has_no_share_of_the_probability():
    ids, p_N = draw([0.0], temperature=0, mask_id=1)
    assert ids == [3]
    assert_close(p_N, torch.tensor([0.5]))
    for mask_id in range(4):  # the ends of the vocabulary too
        ids, _ = draw([0.0, 1e-300, 0.3, 0.6, 1 - 2**-53], temperature=1.0, mask_id=mask_id)
        assert mask_id not in ids


def test_a_uniform_number_falls_where_the_probabilities_add_up_to_it():
    ids, p_N = draw([0.0, 0.124, 0.126, 0.624, 0.626, 0.749, 0.751, 0.999], temperature=1.0)
    assert ids == [0, 0, 1, 1, 2, 2, 3, 3]
    assert_close(p_N, torch.tensor([1, 1, 4, 4, 1, 1, 2, 2]) / 8)


def test_temperature_flattens_what_is_drawn_but_not_how_certain_the_model_is():
    # at T = 2 the weights are 1, 2, 1, sqrt(2), of 5.414: edges 0.185, 0.554, 0.739
    ids, p_N = draw([0.18, 0.19, 0.55, 0.56, 0.73, 0.74], temperature=2.0)
    assert ids == [0, 1, 1, 2, 2, 3]
    assert_close(p_N, torch.tensor([1, 4, 4, 1, 1, 2]) / 8)


def test_drawn_tokens_have_the_frequencies_of_their_probabilities():
    uniforms = np.random.default_rng(0).random(20_000).tolist()
    ids, _ = draw(uniforms, temperature=0.5)
    want = np.array([1, 16, 1, 4]) / 22
    got = np.bincount(ids, minlength=4) / len(ids)
    np.testing.assert_allclose(got, want, atol=0.01)  # three standard errors


def test_half_precision_logits_are_read_in_single_precision():
    logits_V = torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, p_N = draw([0.5], temperature=0, logits_V=logits_V)
    want = logits_V.double().softmax(-1).max()
    assert_close(p_N[0].double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_no_position_gives_no_token(temperature):
    ids_N, p_N = draw_tokens(
        torch.zeros(0, 4), torch.zeros(0), temperature=temperature, mask_id=NO_MASK
    )
    assert ids_N.shape == p_N.shape == (0,)
