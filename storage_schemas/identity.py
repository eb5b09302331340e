"""What a cache was made from: equal identities, equal content; a digest of it names the cache.

Left out on purpose: the number of views (more views extend a cache) and everything of stage 2.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

SCHEMA_VERSION = 2

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Stored(BaseModel):
    """Base of what is stored as JSON: frozen, and unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherIdentity(Stored):
    """The teacher's weights and how they attend. `weights` is a digest of the parameters.

    What its folder is called is not among them: the same weights are the same teacher.
    """

    revision: str | None
    weights: str
    family: str
    attention: Literal["full", "block"]
    block_size: Positive | None
    dtype: str

    @model_validator(mode="after")
    def _only_blocks_have_a_size(self) -> "TeacherIdentity":
        if (self.attention == "block") != (self.block_size is not None):
            raise ValueError(
                f"expected a block_size with attention 'block' and none with 'full', "
                f"got attention {self.attention!r} and block_size {self.block_size}"
            )
        return self


class LengthsIdentity(Stored):
    """Where sequences are cut (tokens), and the student's block, to which they are filled."""

    student_length: Positive
    teacher_length: Positive
    student_block_size: Positive


class NoiseIdentity(Stored):
    """What the noise is drawn from. `demo_ratio` is None without CompDemo.

    Stratified times are not written: identities that are older than the choice keep their digests.
    """

    seed: int
    eps: Annotated[float, Field(gt=0, lt=1)]
    demo_ratio: Annotated[float, Field(ge=0, le=1)] | None
    times: Literal["stratified", "independent"] = "stratified"

    @model_serializer(mode="wrap")
    def _without_stratified(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = dump(self)
        if self.times == "stratified":
            del fields["times"]
        return fields


class EvenTail(Stored):
    """What lies outside the top k is spread evenly."""

    type: Literal["even"] = "even"


class MeanLogitTail(Stored):
    """What lies outside the top k is shaped like the mean logit of the calibration records."""

    type: Literal["mean_logit"] = "mean_logit"
    calibration_records: Positive


class SketchTail(Stored):
    """Every row is kept as the integers of a shaped sketch (docs/sketch.md).

    asks: what the recipe named, "step" (nats), "bytes" (a position) or "grad_error" (a share), and
    how much of it; the calibration turns it into a step. rank: sketch dimensions, None: all that
    the step can tell from nothing. The sketch is shaped at `temperature`.
    """

    type: Literal["sketch"] = "sketch"
    asks: Literal["step", "bytes", "grad_error"]
    amount: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    temperature: Temperature
    rank: Positive | None
    calibration_records: Positive


Tail = Annotated[EvenTail | MeanLogitTail | SketchTail, Field(discriminator="type")]


class KeptIdentity(Stored):
    """What is kept of each distribution.

    top_k = 0 without a tail keeps chunk likelihoods alone. A top k without a tail is there to be
    looked at. vocab_size: leading columns that the top k, the logsumexps and the sketch live on.
    """

    top_k: Count
    logits_dtype: Literal["float16", "float32"]
    temperatures: tuple[Temperature, ...]
    vocab_size: Positive
    tail: Tail | None = None

    @model_validator(mode="after")
    def _kinds_fit(self) -> "KeptIdentity":
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"expected each temperature once, got {self.temperatures}")
        if self.has_tokens and not self.temperatures:
            raise ValueError("expected a temperature or more where logits are kept, got none")
        if self.top_k > self.vocab_size:
            raise ValueError(f"expected top_k <= {self.vocab_size} (vocab_size), got {self.top_k}")
        if self.tail is not None and not self.top_k and not isinstance(self.tail, SketchTail):
            raise ValueError(f"expected top_k > 0 with a {self.tail.type} tail, got 0")
        return self

    @property
    def has_tokens(self) -> bool:
        """Whether there is a row for each answered teacher token."""
        return self.top_k > 0 or self.tail is not None

    @property
    def has_distributions(self) -> bool:
        """Whether those rows stand for whole distributions, as token objectives need them."""
        return self.tail is not None or self.top_k == self.vocab_size

    @property
    def calibration_records(self) -> int:
        """Records that are reserved for the calibration, and never cached."""
        return 0 if self.tail is None or self.tail.type == "even" else self.tail.calibration_records


class CacheIdentity(Stored):
    """Everything that decides a cache's content. Tokenizers and records enter as fingerprints."""

    schema_version: int = SCHEMA_VERSION
    pipeline: Literal["cross_tokenizer", "shared_tokenizer"]
    teacher: TeacherIdentity
    student_tokenizer: str
    teacher_tokenizer: str
    lengths: LengthsIdentity
    records: str
    noise: NoiseIdentity
    kept: KeptIdentity

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()[:16]

    def differences(self, other: "CacheIdentity") -> list[str]:
        """The fields in which `other` (the recipe) differs from this cache, with both values."""
        return differences(self, other)


def canonical_json(model: BaseModel) -> str:
    """The one JSON text of a model: sorted keys, no spaces, ASCII, shortest floats."""
    dumped = model.model_dump(mode="json")
    return json.dumps(dumped, sort_keys=True, separators=(",", ":"), allow_nan=False)


def differences(cached: BaseModel, wanted: BaseModel) -> list[str]:
    """Dotted names of differing fields: `noise.seed: the cache has 1, the recipe asks for 2`."""
    return _differences(cached.model_dump(mode="json"), wanted.model_dump(mode="json"), "")


def _differences(cached: Any, wanted: Any, prefix: str) -> list[str]:
    if isinstance(cached, dict) and isinstance(wanted, dict):
        ours, theirs = cast("dict[str, Any]", cached), cast("dict[str, Any]", wanted)
        names = [*ours, *(name for name in theirs if name not in ours)]
        return [
            line
            for name in names
            for line in _differences(
                ours.get(name), theirs.get(name), f"{prefix}.{name}" if prefix else name
            )
        ]
    if cached == wanted:
        return []
    return [f"{prefix}: the cache has {_shown(cached)}, the recipe asks for {_shown(wanted)}"]


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
