"""On how many processes stage 2 trains, and how they share the student's weights.

How a student was trained is no part of what it is: none of this enters a run's identity.
"""

from typing import Literal

from pipeline.config.base import StrictModel
from pipeline.config.models import Count


class LaunchConfig(StrictModel):
    """Training processes on this machine, started by torchrun: one a GPU, or several on a CPU.

    sharding `ddp` copies the student to every process; `fsdp2` gives each a share of its weights,
    gradients and optimizer states.
    """

    processes: Count
    sharding: Literal["ddp", "fsdp2"] = "ddp"
