"""Held-out likelihood of settings, each against its control: paired by seed, or over records.

Axes: R held-out record, L noise level.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.evaluate.heldout import HeldOut, HeldOutScores, paired_difference
from pipeline.evaluate.statistics import bootstrap_interval, mean_interval, paired_interval
from pipeline.report.contents import Gain, HeldOutPart, HeldOutRow, Setting
from pipeline.report.estimates import (
    Estimate,
    of_interval,
    over_records,
    over_seeds,
    scaled,
    without_interval,
)
from pipeline.text.tokenizer import ChatTokenizer

Scores = Mapping[str, HeldOutScores]
"""By the folder of a run, or by the label of another model."""


def held_out_part(
    settings: Sequence[Setting],
    scores: Scores,
    references: Scores,
    *,
    held_out: HeldOut,
    num_bytes: int,
    source: str,
) -> HeldOutPart:
    """Every setting's row, after those of the models that are no run; all on the same masks."""
    per_byte = held_out.num_content / num_bytes if num_bytes else float("nan")
    by_key = {one.key: one for one in settings}
    rows = [_row(label, None, [one], per_byte) for label, one in references.items()]
    for setting in settings:
        found = [scores[run] for run in setting.runs]
        gain = None
        if setting.control is not None:
            gain = _gain(setting, by_key[setting.control], scores)
        rows.append(_row(setting.label, setting.key, found, per_byte, gain))
    return HeldOutPart(
        fingerprint=held_out.fingerprint,
        source=source,
        num_records=len(held_out.records),
        num_tokens=held_out.num_content,
        num_bytes=num_bytes,
        levels=held_out.levels,
        rows=tuple(rows),
    )


def num_text_bytes(held_out: HeldOut, tokenizer: ChatTokenizer) -> int:
    """Bytes of the responses' text; the end of turn is content, but no text."""
    special = set(tokenizer.hf.all_special_ids)
    total = 0
    for record in held_out.records:
        ids = record.student_ids_S[record.is_content_S].tolist()
        if ids and ids[-1] in special:
            ids.pop()
        total += sum(len(tokenizer.token_bytes(token_id)) for token_id in ids)
    return total


def _row(
    label: str,
    setting: str | None,
    scores: Sequence[HeldOutScores],
    per_byte: float,
    gain: Gain | None = None,
) -> HeldOutRow:
    content = [one.content for one in scores]
    num_records = len(scores[0].record_ids)
    levels = range(len(content[0].levels))
    if len(scores) > 1:
        bound = over_seeds([one.nll_bound for one in content])
    else:
        bound = over_records(content[0].nll_bound, content[0].nll_bound_error, num_records)
    return HeldOutRow(
        label=label,
        setting=setting,
        bound=bound,
        bound_per_byte=scaled(bound, per_byte),
        accuracy=over_seeds([one.accuracy for one in content]),
        nll_L=tuple(over_seeds([float(one.nll_L[level]) for one in content]) for level in levels),
        gain=gain,
    )


def _gain(setting: Setting, control: Setting, scores: Scores) -> Gain:
    """Control minus setting. One seed in common: over records. None: means, without an interval."""
    ours = dict(zip(setting.seeds, (scores[run] for run in setting.runs), strict=True))
    theirs = dict(zip(control.seeds, (scores[run] for run in control.runs), strict=True))
    seeds = tuple(seed for seed in setting.seeds if seed in theirs)
    if len(seeds) == 1:
        return _gain_over_records(ours[seeds[0]], theirs[seeds[0]], seeds)
    columns = [
        [_figures(side[seed]) for seed in (seeds or side)] for side in (theirs, ours)
    ]  # of each side: a row a seed
    found: list[Estimate] = []
    for control_values, values in zip(*(zip(*rows, strict=True) for rows in columns), strict=True):
        if seeds:
            found.append(of_interval(paired_interval(control_values, values), "seeds"))
        else:
            means = mean_interval(control_values).mean, mean_interval(values).mean
            found.append(without_interval(means[0] - means[1]))
    bound, accuracy, *at_levels = found
    return Gain(bound=bound, accuracy=_negated(accuracy), nll_L=tuple(at_levels), seeds=seeds)


def _figures(scores: HeldOutScores) -> list[float]:
    """Bound, accuracy, and the mean at each level."""
    content = scores.content
    return [content.nll_bound, content.accuracy, *content.nll_L.tolist()]


def _gain_over_records(ours: HeldOutScores, theirs: HeldOutScores, seeds: tuple[int, ...]) -> Gain:
    difference = paired_difference(theirs, ours)
    num = len(ours.record_ids)
    accuracy = bootstrap_interval(
        (ours.content.num_correct_RL - theirs.content.num_correct_RL).sum(1).astype(np.float64),
        ours.content.num_masked_RL.sum(1).astype(np.float64),
    )
    at_levels = zip(difference.nll_L.tolist(), difference.nll_error_L.tolist(), strict=True)
    return Gain(
        bound=over_records(difference.nll_bound, difference.nll_bound_error, num),
        accuracy=of_interval(accuracy, "records" if accuracy.is_known else "nothing"),
        nll_L=tuple(over_records(mean, error, num) for mean, error in at_levels),
        seeds=seeds,
    )


def _negated(estimate: Estimate) -> Estimate:
    """Of an accuracy more is better: ours minus theirs."""
    return Estimate(
        mean=-estimate.mean,
        low=-estimate.high,
        high=-estimate.low,
        num=estimate.num,
        p_value=estimate.p_value,
        over=estimate.over,
    )
