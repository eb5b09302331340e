"""Where stage 1's shards are made: in processes of their own, on one host or on many.

How a cache was made is no part of what it is: none of this enters its identity.
"""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import StrictModel
from pipeline.config.models import Count


class _Workers(StrictModel):
    """count: worker processes to start on this machine, each with a teacher of its own.

    address: of a cluster that runs already; its workers are used, at most `count` at once.
    threads: of each worker on the CPU; without it, its share of the machine's cores.
    """

    count: Count
    address: Annotated[str, Field(min_length=1)] | None = None
    threads: Count | None = None


class DaskWorkers(_Workers):
    """Workers of Dask; an address is its scheduler's: tcp://host:8786."""

    type: Literal["dask"]


class RayWorkers(_Workers):
    """Workers of Ray; an address is its head's: host:6379, or ray://host:10001 from outside."""

    type: Literal["ray"]


WorkersConfig = Annotated[DaskWorkers | RayWorkers, Field(discriminator="type")]
