"""What every configuration shares: an unknown setting is an error, and a value never changes."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Base of all configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)
