"""Records under both tokenizers, as stage 1 reads them, and those reserved for a calibration."""

from collections.abc import Sequence

from pipeline.config.models import ModelSource, TeacherConfig
from pipeline.config.recipe import Recipe, SharedTokenizer
from pipeline.records.reserve import REASON
from pipeline.storage.model_files import check_code
from pipeline.teacher.calibrate import Reserved
from pipeline.teacher.families import family_named
from pipeline.teacher.fit import check_family, check_mask
from pipeline.text.pair import make_pair
from pipeline.text.tokenizer import ChatTokenizer, check_shared_vocabulary
from storage_schemas.errors import RecipeError, RecordError
from storage_schemas.examples import Pair, Record
from storage_schemas.identity import NoiseIdentity
from storage_schemas.skips import Skip

_SEARCH_PART = 8  # one in so many reserved records is for the search of a step


def load_tokenizers(recipe: Recipe) -> tuple[ChatTokenizer, ChatTokenizer]:
    """The student's and the teacher's, refused before any work where they cannot serve."""
    check_family(recipe.teacher)
    student = load_tokenizer(recipe.student)
    teacher = load_teacher_tokenizer(recipe.teacher)
    _ = student.mask_id, teacher.mask_id  # both are needed
    check_mask(recipe.teacher, teacher)
    if isinstance(recipe.pipeline, SharedTokenizer):
        check_shared_vocabulary(student, teacher, recipe.pipeline.vocab)
    return student, teacher


def load_teacher_tokenizer(config: TeacherConfig) -> ChatTokenizer:
    """The teacher's, with its family's mask id where the recipe names none."""
    named = config.mask_token is not None or config.mask_id is not None
    return load_tokenizer(config, mask_id=None if named else family_named(config.family).mask_id)


def load_tokenizer(source: ModelSource, *, mask_id: int | None = None) -> ChatTokenizer:
    """The tokenizer of a model; `mask_id` where the recipe names no mask."""
    check_code(source)
    return ChatTokenizer.load(
        source.model,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
        mask_token=source.mask_token,
        mask_id=source.mask_id if source.mask_id is not None else mask_id,
    )


def pair_or_skip(
    record: Record, recipe: Recipe, student: ChatTokenizer, teacher: ChatTokenizer
) -> Pair | Skip:
    """A record under both tokenizers, or why it cannot be used."""
    try:
        return make_pair(
            record,
            student,
            teacher,
            student_length=recipe.student.length,
            teacher_length=recipe.teacher.length,
            block_size=recipe.student.block_size,
            teacher_block_size=recipe.teacher_block_size,
            is_shared_vocab=isinstance(recipe.pipeline, SharedTokenizer),
        )
    except RecordError as error:
        return Skip(
            where=record.where, record_id=record.id, reason=error.reason, message=str(error)
        )


def check_reserved(count: int, num_records: int) -> None:
    """Raise where no record would be left to cache."""
    if count >= num_records:
        raise RecipeError(
            f"expected fewer targets.tail.calibration_records than the {num_records} records "
            f"there are, got {count}: they are never cached; name fewer, or another tail"
        )


def reserved_skip(record: Record) -> Skip:
    """What the ledger says of a reserved record."""
    message = "reserved for the calibration of the sketch, and never cached"
    return Skip(where=record.where, record_id=record.id, reason=REASON, message=message)


def reserved_for(pairs: Sequence[Pair], noise: NoiseIdentity, mask_id: int) -> Reserved:
    """The reserved records, cut into those for the calibration and those for the search."""
    for_search = -(-len(pairs) // _SEARCH_PART)
    return Reserved(
        calibration=pairs[for_search:], search=pairs[:for_search], noise=noise, mask_id=mask_id
    )
