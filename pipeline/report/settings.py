"""Which runs belong together, which are controls, and what else than the objective tells two apart.

A setting is all runs that differ in their seed alone. Runs compare with a control of the same
start, steps and views that learns from cross-entropy alone.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipeline.config.sweep import flat_settings
from pipeline.report.contents import Setting
from pipeline.report.runs import FinishedRun
from pipeline.sweep.names import shown
from storage_schemas.errors import RecipeError
from storage_schemas.manifest import views_in_name

AUTO = "auto"
_CONTROL = "masked_nll"
# How a run is watched and kept, and on what it runs: none of it is meant to change the student.
_NOT_SETTINGS = (
    "train.seed",
    "train.log_steps",
    "train.save_steps",
    "train.keep_checkpoints",
    "train.gradient_checkpointing",
    "train.kernel",
    "train.device",
)
_SEED = re.compile(r"(^|[-_,. ]+)(seed|s)?[-_,.= ]*$")

Members = dict[str, tuple[FinishedRun, ...]]
"""The runs of each setting, by its key, in order of their seeds."""


def make_settings(
    runs: Sequence[FinishedRun], *, control: str | Path = AUTO
) -> tuple[tuple[Setting, ...], Members]:
    """The settings in the order of their first runs, controls first; and their runs.

    `control` names the run whose setting is everyone's control; with "auto" a setting's control is
    the one of cross-entropy alone that differs from it least.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_fields(run), sort_keys=True), []).append(run)
    members: Members = {}
    for number, group in enumerate(groups.values()):
        members[f"s{number}"] = tuple(sorted(group, key=lambda run: run.seed))
    _refuse_twins(members)
    labels = _labels(members)
    settings = [_setting(key, labels[key], group) for key, group in members.items()]
    settings = _with_details(settings, members)
    settings = _with_controls(settings, members, control)
    settings.sort(key=lambda setting: not setting.is_control)
    return tuple(settings), members


def _fields(run: FinishedRun) -> dict[str, Any]:
    """All that decides its student but the seed, flat; held-out text only watches."""
    flat = flat_settings(run.identity["recipe"])
    fields = {
        name: value
        for name, value in flat.items()
        if name not in _NOT_SETTINGS and not name.startswith("held_out")
    }
    return fields | {
        "cache.digest": run.identity["cache"]["digest"],
        "cache.shards": run.identity["cache"]["shards"],
    }


def _refuse_twins(members: Members) -> None:
    for group in members.values():
        seeds = [run.seed for run in group]
        twins = [str(run.folder) for run in group if seeds.count(run.seed) > 1]
        if twins:
            raise RecipeError(
                f"expected runs of equal settings to have seeds of their own, got the same one in "
                f"{', '.join(twins)}; leave one of them out"
            )


def _setting(key: str, label: str, group: Sequence[FinishedRun]) -> Setting:
    first = group[0]
    return Setting(
        key=key,
        label=label,
        objective=first.recipe.objective.type,
        details={},
        start=first.recipe.student.model,
        cache=first.identity["cache"]["digest"],
        num_views=_num_views(first),
        steps=tuple(sorted({run.steps for run in group})),
        seeds=tuple(run.seed for run in group),
        runs=tuple(str(run.folder) for run in group),
    )


def _num_views(run: FinishedRun) -> int:
    """Views of a record: of the part that has the most."""
    of_part: dict[int, int] = {}
    for name in run.identity["cache"]["shards"]:
        found = views_in_name(name)
        assert found is not None, "run.json lists shards"
        part, views = found
        of_part[part] = of_part.get(part, 0) + len(views)
    return max(of_part.values(), default=0)


def _labels(members: Members) -> dict[str, str]:
    """What the folders of a setting are called, without their seeds; each label once."""
    labels: dict[str, str] = {}
    for key, group in members.items():
        names = [run.folder.resolve().name for run in group]
        common = names[0]
        if len(set(names)) > 1:
            letters = takewhile(lambda those: len(set(those)) == 1, zip(*names, strict=False))
            common = _SEED.sub("", "".join(those[0] for those in letters))
        labels[key] = common or group[0].recipe.objective.type
    texts = list(labels.values())
    return {
        key: f"{label} ({key})" if texts.count(label) > 1 else label
        for key, label in labels.items()
    }


def _with_details(settings: Sequence[Setting], members: Members) -> list[Setting]:
    """Each with the values of what is not the same everywhere; lists of shards left out."""
    fields = {key: _fields(group[0]) for key, group in members.items()}
    names = dict.fromkeys(name for flat in fields.values() for name in flat)
    varied = [
        name
        for name in names
        if name != "cache.shards" and len({shown(flat.get(name)) for flat in fields.values()}) > 1
    ]
    return [
        replace(
            setting,
            details={
                name: shown(fields[setting.key][name])
                for name in varied
                if fields[setting.key].get(name) is not None
            },
        )
        for setting in settings
    ]


def _with_controls(
    settings: Sequence[Setting], members: Members, control: str | Path
) -> list[Setting]:
    if control == AUTO:
        controls = [one for one in settings if one.objective == _CONTROL]
    else:
        place = Path(control).resolve()
        controls = [
            one for one in settings if any(Path(run).resolve() == place for run in one.runs)
        ]
        assert controls, "the control is among the runs"
    chosen: list[Setting] = []
    for setting in settings:
        if setting in controls or not controls:
            chosen.append(replace(setting, is_control=setting in controls))
            continue
        found = [(one, _differences(setting, one, members)) for one in controls]
        nearest, differences = min(found, key=lambda pair: len(pair[1]))
        chosen.append(replace(setting, control=nearest.key, differences=tuple(differences)))
    return chosen


def _differences(setting: Setting, control: Setting, members: Members) -> list[str]:
    """In what, beside the objective, two settings differ, each as `name: ours against theirs`."""
    ours, theirs = (_fields(members[one.key][0]) for one in (setting, control))
    lines = [
        f"{_name(name)}: {shown(ours.get(name))} against {shown(theirs.get(name))}"
        for name in dict.fromkeys([*ours, *theirs])
        if not name.startswith("objective.")
        and name != "cache.shards"
        and ours.get(name) != theirs.get(name)
    ]
    if setting.num_views != control.num_views:
        lines.append(f"views a record: {setting.num_views} against {control.num_views}")
    elif ours["cache.shards"] != theirs["cache.shards"]:
        lines.append("other shards of the cache")
    if setting.steps != control.steps:
        lines.append(f"steps done: {shown(setting.steps)} against {shown(control.steps)}")
    return lines


def _name(key: str) -> str:
    return "start" if key == "student.model" else key
