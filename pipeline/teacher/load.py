"""Which engine runs the recipe's teacher."""

import logging

from pipeline.config.models import TeacherConfig
from pipeline.teacher.backend import TeacherBackend
from pipeline.teacher.families import family_named
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.teacher.vllm_plugin import why_not_usable
from storage_schemas.errors import TeacherError

_LOG = logging.getLogger(__name__)


def load_backend(config: TeacherConfig, *, block_size: int | None) -> TeacherBackend:
    """The recipe's teacher, loaded and checked; the log says what runs it, and why."""
    reason = None if config.backend == "vllm" else _why_not_vllm(config)
    if reason is None:
        from pipeline.teacher.vllm_backend import VllmBackend

        try:
            return VllmBackend.load(config, block_size=block_size)
        except TeacherError as error:
            if config.backend == "vllm":
                raise
            reason = str(error)
    _LOG.info("teacher %s runs on transformers: %s", config.model, reason)
    return TransformersBackend.load(config, block_size=block_size)


def _why_not_vllm(config: TeacherConfig) -> str | None:
    """What of the recipe, or of this environment, is for transformers; or None."""
    if config.backend == "transformers":
        return "teacher.backend asks for it"
    if config.kernel != "auto":
        return f"teacher.kernel = {config.kernel!r} is one of its kernels"
    if not family_named(config.family).is_native:
        return f"vLLM does not serve the family {config.family!r}"
    return why_not_usable()
