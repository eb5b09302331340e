"""The families of teachers: what is particular to each, one small module a family."""

from pipeline.teacher.families.dream import DREAM
from pipeline.teacher.families.family import Family
from pipeline.teacher.families.llada import LLADA
from pipeline.teacher.families.llada2 import LLADA2
from pipeline.teacher.families.native import NATIVE, NATIVE_SHIFTED
from pipeline.teacher.families.wedlm import WEDLM

_FAMILIES = {one.name: one for one in (NATIVE, NATIVE_SHIFTED, LLADA, LLADA2, WEDLM, DREAM)}


def family_of_model_type(model_type: str) -> Family | None:
    """The family whose checkpoints say so in their config.json, where one is known."""
    return next((one for one in _FAMILIES.values() if model_type in one.model_types), None)


def family_named(name: str) -> Family:
    """The family of that name; recipes hold no other."""
    return _FAMILIES[name]


__all__ = ["Family", "family_named", "family_of_model_type"]
