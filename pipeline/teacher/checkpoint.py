"""A teacher's checkpoint: what its config.json says without running any of its code, and loading.

Its own code runs, and its files are read, only as far as `model_files` allows.
"""

import logging
from typing import Any, cast

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pipeline.config.models import ModelSource, TeacherConfig
from pipeline.storage.model_files import check_code, check_weights, own_classes
from storage_schemas.errors import TeacherError

_LOG = logging.getLogger(__name__)
_UNLOADABLE = (OSError, ValueError)
# what code says that was written for another version of transformers
_STALE_CODE = (ImportError, AttributeError, KeyError, TypeError)


def stored_config(source: ModelSource) -> dict[str, Any]:
    """The fields of a checkpoint's config.json, as they stand there; nothing is executed."""
    options = {} if source.revision is None else {"revision": source.revision}
    try:
        fields, _ = cast("Any", PretrainedConfig).get_config_dict(source.model, **options)
    except _UNLOADABLE as error:
        raise TeacherError(
            f"expected a config.json at {source.model!r}, got: {error}; check model and revision"
        ) from error
    if not fields:
        raise TeacherError(
            f"expected a teacher that transformers can load at {source.model!r}, got no "
            f"config.json; check model and revision"
        )
    return cast("dict[str, Any]", fields)


def load_checkpoint(config: TeacherConfig, *, implementation: str) -> PreTrainedModel:
    """The recipe's teacher on its CPU, with its head; its own code only where that is asked for."""
    check_code(config)
    check_weights(config)
    fields = stored_config(config)
    options: dict[str, Any] = {
        "trust_remote_code": config.trust_remote_code,
        "dtype": getattr(torch, config.dtype),
        "attn_implementation": implementation,
        "use_safetensors": True,
    }
    if config.revision is not None:
        options["revision"] = config.revision
    own = own_classes(fields) if config.trust_remote_code else {}
    # some publish their causal LM as a plain model
    is_plain = "AutoModel" in own and "AutoModelForCausalLM" not in own
    auto = AutoModel if is_plain else AutoModelForCausalLM
    try:
        model = cast("Any", auto).from_pretrained(config.model, **options)
    except _UNLOADABLE as error:
        raise TeacherError(
            f"expected a teacher that transformers can load at {config.model!r}, got: {error}"
        ) from error
    except _STALE_CODE as error:
        if not own:
            raise
        wrote = fields.get("transformers_version", "an unknown version")
        raise TeacherError(
            f"expected code at {config.model!r} that runs under transformers "
            f"{transformers.__version__}, got {type(error).__name__}: {error}; its config.json "
            f"comes from transformers {wrote}: see docs/teachers.md for the versions that each "
            f"family's code runs under, and install one for stage 1"
        ) from error
    if model.get_output_embeddings() is None:
        raise TeacherError(
            f"expected a language model with a head at {config.model!r}, got "
            f"{type(model).__name__} without one (get_output_embeddings() is None)"
        )
    if own:
        _LOG.info("%s runs its own code: %s", config.model, ", ".join(own.values()))
    return cast("PreTrainedModel", model)
