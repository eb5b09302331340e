"""Does a recipe's teacher fit its family? Asked before any work; only config.json is read."""

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.config.models import TeacherConfig
from pipeline.storage.model_files import check_code
from pipeline.teacher.checkpoint import stored_config
from pipeline.teacher.families import Family, family_named, family_of_model_type
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecipeError


def check_family(config: TeacherConfig) -> None:
    """Raise where attention, remote code or checkpoint contradict the family that is named."""
    family = family_named(config.family)
    if config.attention.type not in family.attentions:
        raise RecipeError(
            f"expected teacher.attention.type of {_either(family.attentions)} for family "
            f"{family.name!r}, got {config.attention.type!r}: this family has no such attention"
        )
    if not family.is_native and not config.trust_remote_code:
        raise RecipeError(
            f"expected teacher.trust_remote_code = true for family {family.name!r}, whose "
            f"checkpoints bring their own code, got false; set it, with a revision that pins the "
            f"code, once you have read it"
        )
    if not family.is_native and config.kernel not in ("auto", family.implementation):
        raise RecipeError(
            f"expected teacher.kernel = 'auto' for family {family.name!r}, got {config.kernel!r}: "
            f"its own code reads masks as {family.implementation!r} attention does, and was tried "
            f"with no other"
        )
    check_code(config)
    _check_model_type(config, family)


def check_mask(config: TeacherConfig, tokenizer: ChatTokenizer) -> None:
    """Raise where the mask id cannot be the model's.

    A mask token that a recipe names is the user's word against the tokenizer's own; an id may be a
    slip of one digit.
    """
    mask_id, fields = tokenizer.mask_id, stored_config(config)
    own: Any = tokenizer.hf
    said = {
        "the tokenizer's mask token": own.mask_token_id,
        "config.json": fields.get("mask_token_id"),
    }
    wrong = {where: other for where, other in said.items() if other not in (None, mask_id)}
    if wrong and config.mask_token is None:
        where, other = next(iter(wrong.items()))
        source = "teacher.mask_id" if config.mask_id is not None else f"family {config.family!r}"
        raise RecipeError(
            f"expected one mask id, got {mask_id} from {source} and {other} from {where} of "
            f"{config.model!r}; set teacher.mask_id = {other}, or choose the family or the "
            f"checkpoint that belongs to {mask_id}"
        )
    rows = fields.get("embedding_size") or fields.get("vocab_size")
    if isinstance(rows, int) and mask_id >= rows:
        raise RecipeError(
            f"expected a mask id below {rows}, the embeddings of {config.model!r}, got {mask_id}; "
            f"set teacher.mask_id to the id of the mask that this checkpoint was trained with"
        )


def _check_model_type(config: TeacherConfig, family: Family) -> None:
    model_type = str(stored_config(config).get("model_type", ""))
    owner = family_of_model_type(model_type)
    if owner is not None and owner != family:
        raise RecipeError(
            f"expected teacher.family = {owner.name!r} for {config.model!r}, whose config.json "
            f"says model_type {model_type!r}, got {family.name!r}; another family would ask it "
            f"with another mask or shift"
        )
    is_known = model_type in CONFIG_MAPPING
    if family.is_native and not is_known:
        raise RecipeError(
            f"expected an architecture of transformers' own for family {family.name!r}, got "
            f"model_type {model_type!r} at {config.model!r}; name the family whose code it runs"
        )


def _either(names: frozenset[str]) -> str:
    return " or ".join(repr(name) for name in sorted(names))
