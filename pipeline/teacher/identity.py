"""What a recipe's cache is made from: the identity that its digest is taken of."""

from pipeline.config.cache import EvenTailConfig, MeanLogitTailConfig, TokenTargetsConfig
from pipeline.config.recipe import Recipe, SharedTokenizer
from pipeline.teacher.weights import weights_digest
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.identity import (
    CacheIdentity,
    EvenTail,
    KeptIdentity,
    LengthsIdentity,
    MeanLogitTail,
    NoiseIdentity,
    SketchTail,
    Tail,
    TeacherIdentity,
)


def cache_identity(
    recipe: Recipe, student: ChatTokenizer, teacher: ChatTokenizer, records: str
) -> CacheIdentity:
    """All that decides what a recipe's cache holds; `records` is their fingerprint."""
    return CacheIdentity(
        pipeline=recipe.pipeline.type,
        teacher=teacher_identity(recipe),
        student_tokenizer=student.fingerprint,
        teacher_tokenizer=teacher.fingerprint,
        lengths=LengthsIdentity(
            student_length=recipe.student.length,
            teacher_length=recipe.teacher.length,
            student_block_size=recipe.student.block_size,
        ),
        records=records,
        noise=noise_identity(recipe),
        kept=kept_identity(recipe, teacher),
    )


def teacher_identity(recipe: Recipe) -> TeacherIdentity:
    """Which teacher a recipe names; its weights are read for it."""
    return TeacherIdentity(
        revision=recipe.teacher.revision,
        weights=weights_digest(recipe.teacher),
        family=recipe.teacher.family,
        attention=recipe.teacher.attention.type,
        block_size=recipe.teacher_block_size,
        dtype=recipe.teacher.dtype,
    )


def noise_identity(recipe: Recipe) -> NoiseIdentity:
    """What the recipe's noise is drawn from."""
    return NoiseIdentity(
        seed=recipe.noise.seed,
        eps=recipe.noise.eps,
        demo_ratio=recipe.noise.compdemo.ratio if recipe.noise.compdemo else None,
        times=recipe.noise.times,
    )


def kept_identity(recipe: Recipe, teacher: ChatTokenizer) -> KeptIdentity:
    """What the recipe keeps of each distribution."""
    targets, shared = recipe.targets, recipe.pipeline
    vocab_size = shared.vocab if isinstance(shared, SharedTokenizer) else teacher.vocab_size
    if isinstance(targets, TokenTargetsConfig):
        return KeptIdentity(
            top_k=min(targets.k, vocab_size),
            logits_dtype=targets.logits_dtype,
            temperatures=targets.temperatures,
            vocab_size=vocab_size,
            tail=_tail(targets),
        )
    # for the eye alone: float16 is enough, and T = 1 gives the probabilities
    return KeptIdentity(
        top_k=min(targets.k, vocab_size),
        logits_dtype="float16",
        temperatures=(1.0,) if targets.k else (),
        vocab_size=vocab_size,
    )


def _tail(targets: TokenTargetsConfig) -> Tail:
    tail = targets.tail
    if isinstance(tail, EvenTailConfig):
        return EvenTail()
    if isinstance(tail, MeanLogitTailConfig):
        return MeanLogitTail(calibration_records=tail.calibration_records)
    asks, amount = tail.asked
    return SketchTail(
        asks=asks,
        amount=amount,
        temperature=max(targets.temperatures),
        rank=tail.rank,
        calibration_records=tail.calibration_records,
    )
