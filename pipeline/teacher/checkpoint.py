"""A teacher's checkpoint: what its config.json says without running any of its code, and loading.

Remote code is code of others: it runs only where a recipe asks for it, at one commit or from a
folder whose code is part of the cache's identity.
"""

import logging
import re
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pipeline.config.models import ModelSource, TeacherConfig
from storage_schemas.errors import TeacherError

_LOG = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
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


def own_classes(fields: dict[str, Any]) -> dict[str, str]:
    """The classes that a checkpoint brings code for, by the name of transformers' auto class.

    A tokenizer's may be one of two, or none.
    """
    named = cast("dict[str, Any]", fields.get("auto_map") or {})
    return {auto: name for auto, name in named.items() if isinstance(name, str)}


def check_pinned(source: ModelSource) -> None:
    """Raise where remote code would run that nothing pins."""
    if not source.trust_remote_code:
        return
    is_folder = Path(source.model).is_dir()
    if not is_folder and not _COMMIT.fullmatch(source.revision or ""):
        raise TeacherError(
            f"expected revision = a commit (40 hex digits) of {source.model!r}, whose code will "
            f"run here, got {source.revision!r}, which may be other code tomorrow; ask for the "
            f'newest commit with python -c "from huggingface_hub import model_info; '
            f"print(model_info('{source.model}').sha)\", and read that commit's *.py before you "
            f"name it"
        )
    elsewhere = [name for name in own_classes(stored_config(source)).values() if "--" in name]
    if elsewhere:
        raise TeacherError(
            f"expected the code of {source.model!r} beside its weights, got {elsewhere[0]!r}, "
            f"which lies in another repository and is not pinned by this revision; copy its *.py "
            f"beside the weights in a folder, name them without '--' in its config.json, and use "
            f"the folder"
        )


def load_checkpoint(config: TeacherConfig, *, implementation: str) -> PreTrainedModel:
    """The recipe's teacher on its CPU, with its head; its own code only where that is asked for."""
    fields = stored_config(config)
    options: dict[str, Any] = {
        "trust_remote_code": config.trust_remote_code,
        "dtype": getattr(torch, config.dtype),
        "attn_implementation": implementation,
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
