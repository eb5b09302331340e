"""Random hidden states with a few strong directions, a head, and a basis made from them.

Axes: N calibration position, M position, H hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch

from pipeline.targets.calibrate import Axes, Moments, find_axes

TEMPERATURE = 2.0


@dataclass(frozen=True)
class World:
    """A head without a bias, hidden states to calibrate on, and others to encode."""

    head_VH: torch.Tensor
    calibration_NH: torch.Tensor
    held_out_MH: torch.Tensor
    axes: Axes

    def logits_of(self, hidden_MH):
        return hidden_MH.float() @ self.head_VH.T


def make_world(*, hidden=32, vocab=600, calibration=1500, held_out=64, seed=0) -> World:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    head_VH = 0.6 * normal(vocab, hidden)
    mix_HH = normal(hidden, hidden) * torch.arange(1, hidden + 1) ** -0.6
    calibration_NH, held_out_MH = (
        normal(count, hidden) @ mix_HH.T + 0.3 for count in (calibration, held_out)
    )
    moments = Moments(head_VH, temperature=TEMPERATURE)
    moments.add(calibration_NH, calibration_NH @ head_VH.T)
    return World(head_VH, calibration_NH, held_out_MH, find_axes(moments, None))
