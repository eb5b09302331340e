"""What a report says of one cache's views: calibration, agreement, and examples."""

from dataclasses import dataclass

from pipeline.report.estimates import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Positions of like certainty: the mean of it, the share that is right, and their number."""

    confidence: float
    accuracy: float
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How certain a model is of its likeliest token, and how often it is right (T = 1).

    error: expected calibration error, the mean gap between both over bins of certainty. Without a
    setting it is the teacher's.
    """

    label: str
    setting: str | None
    error: Estimate
    confidence: float
    accuracy: float
    nll: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseBin:
    """Agreement over the views of one stretch of noise."""

    low: float
    high: float
    share: Estimate
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a setting's students say what the teacher said.

    share: of positions with the same likeliest token, or of chunks on the same side of one half.
    correlation: of the log-likelihoods of the true chunks.
    """

    setting: str
    share: Estimate
    correlation: Estimate
    bins: tuple[NoiseBin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of an example's text; `number` where its distributions are shown."""

    text: str
    is_masked: bool
    number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Likely:
    """One token of a distribution."""

    text: str
    probability: float
    is_true: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A model's likeliest tokens at one position, and the true token's probability."""

    label: str
    setting: str | None
    tokens: tuple[Likely, ...]
    true_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One masked position of an example, and what each model says of it."""

    number: int
    true_text: str
    distributions: tuple[Distribution, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRow:
    """One masked chunk of an example: its text, and each model's log-likelihood of it, in nats."""

    number: int
    text: str
    logp: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One view: its text with what is masked, and the models' answers at some places of it."""

    record_id: str
    view: int
    time: float
    segments: tuple[Segment, ...]
    places: tuple[Place, ...]
    chunks: tuple[ChunkRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsPart:
    """Teacher and students on the views of one cache.

    side_temperature: chunks are on a side of one half after softening by it.
    """

    cache: str
    digest: str
    teacher: str
    has_tokens: bool
    has_compdemo: bool
    is_held_out: bool
    num_records: int
    num_views: int
    num_positions: int
    num_chunks: int
    side_temperature: float
    calibration: tuple[Calibration, ...]
    agreement: tuple[Agreement, ...]
    examples: tuple[Example, ...]
