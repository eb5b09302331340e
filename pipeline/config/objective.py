"""The distillation objective of stage 2, beside the cross-entropy that is always there."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from pipeline.config.base import StrictModel

Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dump = Callable[[Any], dict[str, Any]]  # what pydantic would write


class TidalConfig(StrictModel):
    """TIDAL's two axes and the timestep weight (method, section 4).

    A setting without effect is refused, and left out of the resolved recipe.
    """

    lambda_init: Share = 0.1
    lambda_max: Share = 0.9
    growth: Literal["cosine", "linear"] = "cosine"
    axes: Literal["both", "training", "timestep"] = "both"
    timestep_weight: Literal["uniform", "midrange"] = "midrange"

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "TidalConfig":
        idle = sorted(self.model_fields_set & self._idle())
        if idle:
            raise ValueError(f"without effect where axes = 'timestep': {', '.join(idle)}")
        return self

    @model_serializer(mode="wrap")
    def _without_idle(self, dump: Dump) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in self._idle()}

    def _idle(self) -> set[str]:
        return {"lambda_init", "growth"} if self.axes == "timestep" else set()


class MaskedNll(StrictModel):
    """Cross-entropy alone: the control."""

    type: Literal["masked_nll"] = "masked_nll"


class Calm(StrictModel):
    """CALM: forward Bernoulli cross-entropy of chunk probabilities."""

    type: Literal["calm"]
    temperature: Temperature = 2.0
    weight: Weight = 1.0


class CalmTidal(StrictModel):
    """TIDAL over chunk probabilities, in the forward CALM loss."""

    type: Literal["calm_tidal"]
    temperature: Temperature = 2.0
    weight: Weight = 1.0
    tidal: TidalConfig = TidalConfig()


class ForwardKl(StrictModel):
    """KL(teacher || student) over tokens."""

    type: Literal["forward_kl"]
    temperature: Temperature = 2.0
    weight: Weight = 1.0


class TidalKl(StrictModel):
    """TIDAL over token distributions."""

    type: Literal["tidal_kl"]
    temperature: Temperature = 2.0
    weight: Weight = 1.0
    tidal: TidalConfig = TidalConfig()


class _Reverse(StrictModel):
    temperature: Temperature = 2.0
    weight: Weight = 1.0
    tidal: TidalConfig | None = None
    tidal_against_reverse: bool = False

    @model_validator(mode="after")
    def _asked_for_twice(self) -> "_Reverse":
        mistakes: list[str] = []
        if self.tidal is not None and not self.tidal_against_reverse:
            mistakes.append(
                "TIDAL works against a reverse objective: a target that grows from the student "
                "suppresses the very self-selection that the reverse direction lives on (the paper "
                "says so too). Leave out the [objective.tidal] table, or set "
                "tidal_against_reverse = true to run it all the same"
            )
        if self.tidal is None and self.tidal_against_reverse:
            mistakes.append("tidal_against_reverse has no effect without [objective.tidal]")
        if self.tidal is not None and "timestep_weight" in self.tidal.model_fields_set:
            mistakes.append("tidal.timestep_weight has no effect in a reverse objective")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @model_serializer(mode="wrap")
    def _without_idle(self, dump: Dump) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        if self.tidal is None:
            return fields
        tidal = {
            name: fields["tidal"][name] for name in fields["tidal"] if name != "timestep_weight"
        }
        return {**fields, "tidal": tidal}


class ReverseCalm(_Reverse):
    """Reverse CALM: the student's chunk probabilities scored by the teacher's."""

    type: Literal["reverse_calm"]


class ReverseKl(_Reverse):
    """KL(student || teacher) over tokens."""

    type: Literal["reverse_kl"]


ChunkObjective = Calm | CalmTidal | ReverseCalm
TokenObjective = ForwardKl | TidalKl | ReverseKl
ObjectiveConfig = Annotated[
    MaskedNll | ChunkObjective | TokenObjective, Field(discriminator="type")
]
