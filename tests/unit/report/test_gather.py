"""The report's numbers: against the runs' own logs, and against what the files say."""

import json
import math
import shutil
from pathlib import Path

import pytest

from pipeline.evaluate.statistics import paired_interval
from pipeline.report.gather import gather_report
from storage_schemas.errors import CacheIdentityError, RecipeError

TOLERANCE = 1e-5


def _logged(runs, name: str, metric: str) -> float:
    summary = json.loads((runs.folder / name / "summary.json").read_text())
    return summary["metrics"][metric]


def _rows(report):
    return {row.label: row for row in report.held_out.rows}


def test_bounds_are_those_that_the_runs_logged_at_their_ends(runs, token_report):
    rows = _rows(token_report)
    assert list(rows) == ["start", "ce", "kl"]
    for label in ("ce", "kl"):
        logged = [_logged(runs, f"{label}-seed{seed}", "held_out_nll") for seed in (0, 1)]
        assert rows[label].bound.mean == pytest.approx(sum(logged) / 2, abs=TOLERANCE)
        assert (rows[label].bound.over, rows[label].bound.num) == ("seeds", 2)
        accuracy = [_logged(runs, f"{label}-seed{seed}", "held_out_accuracy") for seed in (0, 1)]
        assert rows[label].accuracy.mean == pytest.approx(sum(accuracy) / 2, abs=TOLERANCE)


def test_gains_are_paired_by_seed_whatever_the_order_of_the_runs(runs, token_report):
    gain = _rows(token_report)["kl"].gain
    bounds = {
        label: [_logged(runs, f"{label}-seed{seed}", "held_out_nll") for seed in (0, 1)]
        for label in ("ce", "kl")
    }
    wanted = paired_interval(bounds["ce"], bounds["kl"])
    assert gain.seeds == (0, 1)
    assert gain.bound.mean == pytest.approx(wanted.mean, abs=TOLERANCE)
    assert gain.bound.half_width == pytest.approx(wanted.half_width, abs=20 * TOLERANCE)
    at_level = [
        _logged(runs, f"ce-seed{seed}", "held_out_nll_at_0.5")
        - _logged(runs, f"kl-seed{seed}", "held_out_nll_at_0.5")
        for seed in (0, 1)
    ]
    assert gain.nll_L[2].mean == pytest.approx(sum(at_level) / 2, abs=TOLERANCE)
    assert "paired seeds" in token_report.verdict[0]


def test_bytes_are_those_of_the_responses_text(runs, token_report):
    texts = [json.loads(line) for line in runs.unseen.read_text("utf-8").splitlines()][:8]
    part = token_report.held_out
    assert part.num_bytes == sum(len(text["messages"][1]["content"].encode()) for text in texts)
    row = _rows(token_report)["kl"]
    assert row.bound_per_byte.mean == pytest.approx(
        row.bound.mean * part.num_tokens / part.num_bytes
    )


def test_curves_are_the_runs_logs_and_their_bands_the_seeds(runs, token_report):
    panels = {panel.column: panel for panel in token_report.panels}
    assert list(panels) == ["held_out_nll", "masked_nll", "forward_kl"]
    (curve,) = panels["forward_kl"].curves
    assert curve.steps == (1, 2, 3)
    last = [_logged(runs, f"kl-seed{seed}", "forward_kl") for seed in (0, 1)]
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((min(last), max(last)))
    assert curve.mean[-1] == pytest.approx(sum(last) / 2)


def test_views_of_unseen_records_are_held_out_and_the_runs_own_are_not(runs, token_report):
    assert [part.is_held_out for part in token_report.views] == [True]
    own = gather_report(runs.of("kl-seed0"), max_views=4)
    assert [part.is_held_out for part in own.views] == [False]
    assert own.views[0].cache == runs.token_cache


def test_teacher_and_students_stand_side_by_side_at_the_same_positions(token_report):
    (part,) = token_report.views
    assert next(one.setting for one in part.calibration) is None
    assert [one.setting for one in part.agreement] == [one.key for one in token_report.settings]
    for example in part.examples:
        assert example.chunks == ()
        for place in example.places:
            assert len(place.distributions) == 3
            for one in place.distributions:
                shares = [token.probability for token in one.tokens]
                assert shares == sorted(shares, reverse=True)
                assert sum(token.is_true for token in one.tokens) <= 1
            marked = [one for one in example.segments if one.number == place.number]
            assert [one.text for one in marked] == [place.true_text]
            assert all(one.is_masked for one in marked)


def test_a_chunk_cache_shows_chunks_and_no_calibration_of_the_teacher(chunk_report):
    (part,) = chunk_report.views
    assert not part.has_tokens
    assert part.side_temperature == 3.0
    assert all(one.setting is not None for one in part.calibration)
    for example in part.examples:
        assert example.places == ()
        for chunk in example.chunks:
            assert list(chunk.logp) == ["teacher-a", "chunk-ce", "chunk-calm"]
            text = "".join(one.text for one in example.segments if one.number == chunk.number)
            assert text == chunk.text


def test_without_held_out_text_there_is_no_verdict(chunk_report):
    assert chunk_report.held_out is None
    assert "No held-out text" in chunk_report.verdict[0]
    assert all(panel.column != "held_out_nll" for panel in chunk_report.panels)


def test_one_seed_has_its_interval_over_records_and_says_so(runs):
    report = gather_report(runs.of("chunk-ce", "chunk-calm"), records=[runs.unseen], max_views=4)
    gain = _rows(report)["chunk-calm"].gain
    assert (gain.bound.over, gain.bound.num) == ("records", 12)
    assert gain.bound.low < gain.bound.mean < gain.bound.high
    assert gain.accuracy.over == "records"
    assert "records of one seed" in report.verdict[0]
    assert report.held_out.source == "unseen.jsonl"


def test_settings_without_a_seed_in_common_have_no_interval(runs):
    report = gather_report(runs.of("ce-seed0", "kl-seed1"), max_views=4)
    gain = _rows(report)["kl-seed1"].gain
    assert gain.bound.over == "nothing"
    assert math.isnan(gain.bound.low)
    assert gain.bound.mean == pytest.approx(
        _logged(runs, "ce-seed0", "held_out_nll") - _logged(runs, "kl-seed1", "held_out_nll"),
        abs=TOLERANCE,
    )
    assert "no seed in common" in report.verdict[0]


def test_costs_are_the_caches_files_and_the_runs_seconds(runs, token_report):
    (cost,) = token_report.cache_costs
    files = [path for path in Path(runs.token_cache).rglob("*") if path.is_file()]
    stored = [
        p for p in files if (p.parts[-2] != "ledger" and p.suffix != ".json") or "zarr" in str(p)
    ]
    assert cost.num_bytes == sum(path.stat().st_size for path in stored)
    assert cost.item == "position"
    train = {one.setting: one for one in token_report.train_costs}
    for setting in token_report.settings:
        seconds = [
            json.loads((Path(run) / "summary.json").read_text())["seconds"] for run in setting.runs
        ]
        assert train[setting.key].seconds == pytest.approx(sum(seconds) / 2)


def test_records_that_a_student_was_trained_on_are_refused(runs, tiny):
    with pytest.raises(RecipeError, match="records that nobody trains on"):
        gather_report(runs.of("chunk-ce"), records=[tiny.records])


def test_a_cache_for_other_students_is_refused(runs, tiny, tmp_path):
    copy = Path(shutil.copytree(runs.of("kl-seed0")[0], tmp_path / "run"))
    recipe = copy / "final" / "recipe.json"
    fields = json.loads(recipe.read_text())
    fields["student"]["block_size"] = 8
    recipe.write_text(json.dumps(fields))
    with pytest.raises(CacheIdentityError, match="block size: the cache has 16"):
        gather_report([copy])


def test_a_cache_that_is_gone_costs_its_sections_only(runs, tmp_path):
    copy = Path(shutil.copytree(runs.of("kl-seed0")[0], tmp_path / "run"))
    stamp = copy / "final" / "tidecache.json"
    stamp.write_text(stamp.read_text().replace(runs.token_cache, str(tmp_path / "gone")))
    report = gather_report([copy])
    assert report.views == report.cache_costs == ()
    assert "no longer there" in report.notes[0]
    assert _rows(report)["run"].bound.over == "records"
