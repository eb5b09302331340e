"""What a report says: every number of the page, as `report.json` keeps it.

Gains are the control minus the setting, in nats a token (of accuracy the other way round): above
zero is better. Axes: L noise level.
"""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.report.estimates import Estimate
from pipeline.report.view_contents import ViewsPart


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
