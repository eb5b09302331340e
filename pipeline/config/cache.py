"""What stage 1 draws and keeps: the noise, the targets, and where they go."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import StrictModel
from pipeline.config.models import Count


class CompDemoConfig(StrictModel):
    """CompDemo: the expected share of the masked chunks that the second pass answers."""

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5


class NoiseConfig(StrictModel):
    """The noise: views drawn of each record, times in [eps, 1), CompDemo where a table is given."""

    seed: int = 0
    views: Count = 4
    eps: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    compdemo: CompDemoConfig | None = None


class ChunkTargetsConfig(StrictModel):
    """One exact log-likelihood a chunk, and nothing else."""

    type: Literal["chunks"] = "chunks"


class TopKTargetsConfig(StrictModel):
    """Chunk likelihoods, and at each answered position the k largest logits.

    The exact logsumexp is kept at T = 1 and at each of `temperatures`.
    """

    type: Literal["top_k"]
    k: Count = 64
    temperatures: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1.0, 2.0)
    logits_dtype: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _temperatures_fit(self) -> "TopKTargetsConfig":
        if 1.0 not in self.temperatures:
            raise ValueError(f"expected 1.0 among the temperatures, got {list(self.temperatures)}")
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"expected each temperature once, got {list(self.temperatures)}")
        return self


TargetsConfig = Annotated[ChunkTargetsConfig | TopKTargetsConfig, Field(discriminator="type")]


class CacheConfig(StrictModel):
    """The cache's folder, and how many records one shard holds views of."""

    path: Annotated[str, Field(min_length=1)]
    records_per_part: Count = 256
