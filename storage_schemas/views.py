"""One draw of noise for one example, and the teacher passes that it leads to.

Axes: S student position, T teacher position, C aligned chunk.
"""

from dataclasses import dataclass

from storage_schemas.examples import Bools, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """The noise of one view: diffusion time and what is masked on each side.

    time: masking probability in [eps, 1). is_masked_S is chunk-consistent: a chunk is masked whole
    (is_masked_C) or not at all, and its teacher tokens (is_masked_T) likewise.
    """

    view: int
    time: float
    is_masked_S: Bools
    is_masked_T: Bools
    is_masked_C: Bools


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPass:
    """One noised input of the teacher, and the chunks whose tokens this pass answers.

    noised_ids_T holds the teacher's mask id wherever this pass is masked; clean_ids_T are the true
    tokens (block-wise teachers read both). A pass answers exactly what it masks.
    """

    clean_ids_T: Ints
    noised_ids_T: Ints
    is_answered_T: Bools
    is_answered_C: Bools
