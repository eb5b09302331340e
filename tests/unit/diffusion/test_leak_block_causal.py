"""Block-causal attention, the clean half's own: what the test for it sees, and does not."""

import pytest
import torch

from pipeline.diffusion.leak import block_causal_faults

BLOCK = 4


def attends(visible_QK):
    """A model of one layer of even attention under a mask."""
    embed = torch.nn.Embedding(50, 8, _weight=torch.randn(50, 8, generator=_seeded()))
    share_QK = visible_QK / visible_QK.sum(1, keepdim=True)
    return lambda ids_BS: share_QK @ embed(ids_BS)


def _seeded():
    return torch.Generator().manual_seed(0)


IDS = torch.randint(2, 50, (3 * BLOCK,), generator=_seeded())
POSITION = torch.arange(3 * BLOCK)
SEES = {
    "block 0 sees block 1": torch.ones(3 * BLOCK, 3 * BLOCK),
    "block 1 does not see its own last token": (POSITION[:, None] >= POSITION[None, :]).float(),
    "block 2 does not see block 1": (
        POSITION[:, None] // BLOCK == POSITION[None, :] // BLOCK
    ).float(),
}


def test_block_causal_attention_has_no_fault():
    visible_QK = (POSITION[:, None] // BLOCK >= POSITION[None, :] // BLOCK).float()
    assert block_causal_faults(attends(visible_QK), IDS, BLOCK) == []


@pytest.mark.parametrize("fault", SEES)
def test_each_fault_is_named(fault):
    (found,) = block_causal_faults(attends(SEES[fault]), IDS, BLOCK)
    assert fault in found


def test_nan_is_a_fault():
    model = attends(torch.full((3 * BLOCK, 3 * BLOCK), torch.nan))
    assert len(block_causal_faults(model, IDS, BLOCK)) == 3
