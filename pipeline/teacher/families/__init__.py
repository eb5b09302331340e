"""The families of teachers: what is particular to each, one small module a family."""

from pipeline.teacher.families.dream import DREAM
from pipeline.teacher.families.family import Family
from pipeline.teacher.families.llada import LLADA
from pipeline.teacher.families.llada2 import LLADA2
from pipeline.teacher.families.native import NATIVE, NATIVE_SHIFTED
from pipeline.teacher.families.wedlm import WEDLM

_FAMILIES = {one.name: one for one in (NATIVE, NATIVE_SHIFTED, LLADA, LLADA2, WEDLM, DREAM)}


def family_named(name: str) -> Family:
    """The family of that name; recipes hold no other."""
    return _FAMILIES[name]


__all__ = ["Family", "family_named"]
