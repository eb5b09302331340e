"""What stage 1 draws and keeps: the noise, the targets, and where they go."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import StrictModel
from pipeline.config.models import Count

_GRAD_ERROR = 0.15


class CompDemoConfig(StrictModel):
    """CompDemo: the expected share of the masked chunks that the second pass answers."""

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5


class NoiseConfig(StrictModel):
    """The noise: views drawn of each record, times in [eps, 1), CompDemo where a table is given.

    The times of a record's views are spread over [eps, 1), or drawn independently. Sixteen views
    that are each read twice train a student as well as noise that is never seen again does
    (docs/evidence.md); with fewer readings as many views as there are of them are enough.
    """

    seed: int = 0
    views: Count = 16
    times: Literal["stratified", "independent"] = "stratified"
    eps: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    compdemo: CompDemoConfig | None = None


class ChunkTargetsConfig(StrictModel):
    """One exact log-likelihood a chunk: all that CALM, Reverse CALM and chunk TIDAL need.

    Beside it the k largest logits of every answered teacher position, to be looked at; 0 for none.
    """

    type: Literal["chunks"] = "chunks"
    k: Annotated[int, Field(ge=0)] = 8


class EvenTailConfig(StrictModel):
    """What lies outside the top k is spread evenly: biased at T = 2 unless k is the vocabulary."""

    type: Literal["even"] = "even"


class MeanLogitTailConfig(StrictModel):
    """What lies outside the top k is shaped like the teacher's mean logit."""

    type: Literal["mean_logit"]
    calibration_records: Count = 256


class SketchTailConfig(StrictModel):
    """Every row as a shaped sketch; asked for by ONE of fidelity, bytes and step.

    grad_error: mean relative error of the TIDAL gradient; bytes: a position; step: nats. Shaped at
    the highest of the cached temperatures.
    """

    type: Literal["sketch"] = "sketch"
    grad_error: Annotated[float, Field(gt=0, lt=1)] | None = None
    bytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rank: Count | None = None
    calibration_records: Count = 256

    @model_validator(mode="after")
    def _one_is_asked(self) -> "SketchTailConfig":
        if sum(value is not None for value in (self.grad_error, self.bytes, self.step)) > 1:
            raise ValueError("expected one of grad_error, bytes and step, got more")
        return self

    @property
    def asked(self) -> tuple[Literal["grad_error", "bytes", "step"], float]:
        """What is asked for, and how much; a gradient error of 0.15 where nothing is named."""
        if self.step is not None:
            return "step", self.step
        if self.bytes is not None:
            return "bytes", self.bytes
        return "grad_error", _GRAD_ERROR if self.grad_error is None else self.grad_error


TailConfig = Annotated[
    EvenTailConfig | MeanLogitTailConfig | SketchTailConfig, Field(discriminator="type")
]


class TokenTargetsConfig(StrictModel):
    """Chunk likelihoods, and the teacher's distribution at each answered position.

    The k largest logits are exact; the tail says what is known of the rest. The exact logsumexp is
    kept at T = 1 and at each of `temperatures`.
    """

    type: Literal["tokens"]
    k: Annotated[int, Field(ge=0)] = 8
    temperatures: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1.0, 2.0)
    logits_dtype: Literal["float16", "float32"] = "float16"
    tail: TailConfig = SketchTailConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "TokenTargetsConfig":
        if 1.0 not in self.temperatures:
            raise ValueError(f"expected 1.0 among the temperatures, got {list(self.temperatures)}")
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"expected each temperature once, got {list(self.temperatures)}")
        if self.k == 0 and not isinstance(self.tail, SketchTailConfig):
            raise ValueError(f"expected k > 0 with tail.type = {self.tail.type!r}, got 0")
        return self


TargetsConfig = Annotated[ChunkTargetsConfig | TokenTargetsConfig, Field(discriminator="type")]


class CacheConfig(StrictModel):
    """The cache's folder, and how many records one shard holds views of."""

    path: Annotated[str, Field(min_length=1)]
    records_per_part: Count = 256
