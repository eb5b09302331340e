"""Can this student be trained from this cache? Everything that cannot be is named in one error."""

from pipeline.cache.reader import CacheReader
from pipeline.config.objective import TokenObjective
from pipeline.config.recipe import Recipe, SharedTokenizer
from pipeline.storage.model_files import check_code
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import CacheIdentityError


def check_cache(reader: CacheReader, recipe: Recipe) -> ChatTokenizer:
    """The student's tokenizer, once it is known to be the one that the cache was made with."""
    student = recipe.student
    check_code(student)
    tokenizer = ChatTokenizer.load(
        student.model,
        revision=student.revision,
        trust_remote_code=student.trust_remote_code,
        mask_token=student.mask_token,
        mask_id=student.mask_id,
    )
    identity = reader.identity
    wanted: list[tuple[str, object, object]] = [
        ("pipeline.type", identity.pipeline, recipe.pipeline.type),
        ("the student's tokenizer", identity.student_tokenizer, tokenizer.fingerprint),
        ("student.length", identity.lengths.student_length, student.length),
        ("student.block_size", identity.lengths.student_block_size, student.block_size),
    ]
    if isinstance(recipe.pipeline, SharedTokenizer):
        wanted.append(("pipeline.vocab", identity.kept.vocab_size, recipe.pipeline.vocab))
    lines = [
        f"{name}: the cache has {got}, the recipe asks for {want}"
        for name, got, want in wanted
        if got != want
    ]
    if isinstance(recipe.objective, TokenObjective):
        if not identity.kept.has_distributions:
            lines.append(
                f"objective {recipe.objective.type!r} needs token distributions, the cache keeps "
                "chunk likelihoods, and at most a top k to look at"
            )
        elif recipe.objective.temperature not in identity.kept.temperatures:
            lines.append(
                f"objective.temperature: the cache has logsumexps at "
                f"{list(identity.kept.temperatures)}, the recipe asks for "
                f"{recipe.objective.temperature}"
            )
    if lines:
        raise CacheIdentityError(
            "\n  ".join(
                [f"{reader.address}: this student cannot be trained from this cache:", *lines]
            )
        )
    return tokenizer
