"""What a calibration leaves behind, once a cache: how a hidden state becomes integers, and logits.

Axes: H teacher's hidden size, R sketch dimension, V vocabulary (the columns that are kept).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage_schemas.sketch_coder import SketchCoder
from storage_schemas.targets import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """The sketch's two matrices and its constants; with R = 0 the mean logit alone.

    mean_H: mean hidden state. encode_HR: hidden state to coefficients, in nats of rms logit;
    scale_R: their root mean squares. decode_RV: coefficients to logits. base_V: mean logit; both
    up to a constant a row, which no softmax sees. bias_V: what the rounding adds to a logit on
    average, in nats^2 (to be divided by 4 T). step: nats of one integer, shaped at `temperature`.
    coder: how the integers become bytes; none without a sketch, or before it is fitted.
    """

    mean_H: Floats
    encode_HR: Floats
    scale_R: Floats
    decode_RV: NDArray[np.float16]
    base_V: Floats
    bias_V: Floats
    step: float
    temperature: float
    coder: SketchCoder | None

    def __post_init__(self) -> None:
        hidden, rank = self.encode_HR.shape
        assert self.mean_H.shape == (hidden,), "one mean a hidden dimension"
        assert self.scale_R.shape == (rank,), "one scale a sketch dimension"
        assert self.decode_RV.shape == (rank, len(self.base_V)), "one row a sketch dimension"
        assert self.bias_V.shape == self.base_V.shape, "one bias a token"
        assert self.coder is None or len(self.coder.shift_R) == rank, "a coder of another sketch"

    @property
    def rank(self) -> int:
        """Sketch dimensions."""
        return self.decode_RV.shape[0]

    @property
    def vocab_size(self) -> int:
        """Columns."""
        return self.decode_RV.shape[1]
