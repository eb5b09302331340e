"""Which engine runs the recipe's teacher."""

from pipeline.config.models import TeacherConfig
from pipeline.teacher.backend import TeacherBackend
from pipeline.teacher.transformers_backend import TransformersBackend


def load_backend(config: TeacherConfig, *, block_size: int | None) -> TeacherBackend:
    """The recipe's teacher, loaded and checked; the log says what runs it, and why."""
    return TransformersBackend.load(config, block_size=block_size)
