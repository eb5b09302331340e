"""The demo's report: the four students on one page, looked at on records that none has seen."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.demo.bars import Bars
from pipeline.demo.result import Row
from pipeline.demo.stages import run_stage_1
from pipeline.evaluate.heldout import HeldOut
from pipeline.report.ask import Known
from pipeline.report.gather import gather_report
from pipeline.report.write import write_report

PAGE = "report/report.html"
_NUM_RECORDS = 24
# So few records leave none to fit a sketch on; what is shown of a distribution is its top.
_TOP_ALONE = ("targets.tail.type=even", "targets.k=16")


def make_page(
    output: Path,
    recipes: Mapping[str, Path],
    rows: Sequence[Row],
    held_out: HeldOut,
    results: Sequence[Mapping[str, Any]],
    bars: Bars,
) -> None:
    """Asks both teachers about a few held-out records, and writes the page beside the results.

    `results` are those of stage 1, for its seconds, where no shard was found made.
    """
    students = {str(row.model.parent): row for row in rows if row.model.name == "final"}
    caches = [_ask_teacher(output, name, recipe, bars) for name, recipe in recipes.items()]
    known = Known(
        held_out=held_out,
        scores={folder: row.scores for folder, row in students.items()},
        references={row.label: row.scores for row in rows if row.model.name != "final"},
        stage_1_seconds={
            result["address"]: result["seconds"] for result in results if not result["shards_found"]
        },
    )
    with bars.bar("report", "students") as advance:
        asked: dict[str, None] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if done == total:
                asked[what] = None
                advance(len(asked), len(students))

        report = gather_report(
            list(students),
            caches=caches,
            title="The demo's students",
            known=known,
            on_progress=on_progress,
        )
        write_report(report, (output / PAGE).parent)


def _ask_teacher(output: Path, name: str, recipe: Path, bars: Bars) -> str:
    """The address of a cache of the first held-out records."""
    records = output / "records" / "looked_at.jsonl"
    with (output / "records" / "held_out.jsonl").open(encoding="utf-8") as lines:
        records.write_text("".join(islice(lines, _NUM_RECORDS)), encoding="utf-8")
    address = str((output / "caches" / f"{name}-held-out").resolve())
    overrides = [
        f"records.paths={json.dumps([str(records.resolve())])}",
        f"cache.path={json.dumps(address)}",
        *(_TOP_ALONE if name == "shared" else ()),
    ]
    with bars.bar(f"held-out answers: {name}", "shards") as advance:
        run_stage_1(recipe, overrides, advance)
    return address
