"""What a report says: every number of the page, as `report.json` keeps it.

Gains are the control minus the setting, in nats a token (of accuracy the other way round): above
zero is better. Axes: L noise level.
"""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.evaluate.statistics import Interval

Over = Literal["seeds", "records", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate(Interval):
    """A figure with its 95 % interval, and what that interval is taken over.

    Over records there is one seed: such an interval does not cover the noise of training.
    """

    over: Over


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Runs that differ in their seed alone.

    differences: in what, beside the objective, it differs from its control; then the two do not
    compare. `control` is the control's key; a control has none.
    """

    key: str
    label: str
    objective: str
    details: dict[str, str]
    start: str
    cache: str
    num_views: int
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    is_control: bool = False
    control: str | None = None
    differences: tuple[str, ...] = ()

    @property
    def is_comparable(self) -> bool:
        """Whether it differs from a control in nothing but the objective."""
        return self.control is not None and not self.differences


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A setting against its control on the same masks, seed by seed."""

    bound: Estimate
    accuracy: Estimate
    nll_L: tuple[Estimate, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRow:
    """A setting's likelihood on held-out text; without a setting, a model to compare with.

    bound: nats a token. bound_per_byte: nats a byte of the responses' text.
    """

    label: str
    setting: str | None
    bound: Estimate
    bound_per_byte: Estimate
    accuracy: Estimate
    nll_L: tuple[Estimate, ...]
    gain: Gain | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutPart:
    """Held-out likelihood of every setting, on masks that are the same for all."""

    fingerprint: str
    source: str
    num_records: int
    num_tokens: int
    num_bytes: int
    levels: tuple[float, ...]
    rows: tuple[HeldOutRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Mean over seeds at each step, and the lowest and highest of them."""

    setting: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One column of the logs, for all settings that have it."""

    column: str
    title: str
    curves: tuple[Curve, ...]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCost:
    """What stage 1 cost: bytes as they lie in the cache; seconds where they are known.

    num_items: stored positions, or chunks where the cache keeps no more. num_teacher_tokens: read
    by the teacher, all passes together, padding left out.
    """

    digest: str
    address: str
    teacher: str
    num_views: int
    item: Literal["position", "chunk"]
    num_items: int
    num_bytes: int
    num_teacher_tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainCost:
    """What a run of a setting cost, on average over its runs."""

    setting: str
    device: str
    seconds: float
    tokens_per_s: float
    wait_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of the page. `machine` is where the report was made, which need not be the runs'."""

    title: str
    made_at: str
    version: str
    machine: dict[str, str]
    verdict: tuple[str, ...]
    settings: tuple[Setting, ...]
    held_out: HeldOutPart | None
    panels: tuple[Panel, ...]
    views: tuple[ViewsPart, ...]
    cache_costs: tuple[CacheCost, ...]
    train_costs: tuple[TrainCost, ...]
    notes: tuple[str, ...] = field(default=())

    def setting(self, key: str) -> Setting:
        """The setting with this key."""
        return next(one for one in self.settings if one.key == key)
