"""Teacher and students on the views of one cache: calibration, agreement, examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import torch

from pipeline.cache.inspect import scan_examples
from pipeline.config.objective import ChunkObjective
from pipeline.report.answers import Answers, teacher_answers
from pipeline.report.calibration import calibration, chunk_agreement, token_agreement
from pipeline.report.contents import Setting
from pipeline.report.examples import Asked, examples
from pipeline.report.runs import FinishedRun
from pipeline.report.view_contents import ViewsPart
from pipeline.report.views import CachedViews, record_ids
from pipeline.storage.address import is_remote
from pipeline.text.tokenizer import ChatTokenizer


def views_part(
    views: CachedViews,
    settings: Sequence[Setting],
    answers: Mapping[str, Answers],
    tokenizer: ChatTokenizer,
    runs: Sequence[FinishedRun],
) -> ViewsPart:
    """`answers` are the students', by the folder of their run; examples show each first seed's."""
    of_setting = {one.key: [answers[run] for run in one.runs] for one in settings}
    asked = [
        Asked(label=one.label, setting=one.key, answers=of_setting[one.key][0]) for one in settings
    ]
    calibrations = [calibration(one.label, one.key, of_setting[one.key]) for one in settings]
    temperature = _side_temperature(runs)
    if views.has_tokens:
        teacher = teacher_answers(views, torch.device("cpu"))
        name = views.teacher
        asked.insert(0, Asked(label=name, setting=None, answers=teacher))
        calibrations.insert(0, calibration(name, None, [teacher]))
        agreement = [
            token_agreement(one.key, of_setting[one.key], teacher, views) for one in settings
        ]
    else:
        agreement = [
            chunk_agreement(one.key, of_setting[one.key], views, temperature=temperature)
            for one in settings
        ]
    return ViewsPart(
        cache=views.address,
        digest=views.digest,
        teacher=views.teacher,
        has_tokens=views.has_tokens,
        has_compdemo=views.has_compdemo,
        is_held_out=_is_held_out(views, runs),
        num_records=len(record_ids(views)),
        num_views=len(views.views),
        num_positions=len(views.view_P),
        num_chunks=len(views.logp_C),
        side_temperature=temperature,
        calibration=tuple(calibrations),
        agreement=tuple(agreement),
        examples=examples(views, asked, tokenizer),
    )


def _side_temperature(runs: Sequence[FinishedRun]) -> float:
    """That of the runs' chunk objectives, where they have one; else 1: plain probabilities."""
    found = {
        run.recipe.objective.temperature
        for run in runs
        if isinstance(run.recipe.objective, ChunkObjective)
    }
    return found.pop() if len(found) == 1 else 1.0


def _is_held_out(views: CachedViews, runs: Sequence[FinishedRun]) -> bool:
    """Whether no run has been trained on any of these records, as far as its cache still tells."""
    if any(run.identity["cache"]["digest"] == views.digest for run in runs):
        return False
    ids = pl.Series(sorted(record_ids(views)), dtype=pl.String)
    for cache in dict.fromkeys(run.cache for run in runs):
        if not is_remote(cache) and not Path(cache).exists():
            continue
        known = (
            scan_examples(cache)
            .select("record_id")
            .filter(pl.col("record_id").is_in(ids.implode()))
        )
        if len(known.collect()):
            return False
    return True
