"""What is drawn for Prefect's UI: curves, tables and keys, without a server."""

import json

import pytest

from flows.artifacts import artifact_key
from flows.assets import asset_of
from flows.curve_pages import curves_text, report_beside, sparkline
from flows.shard_pages import ShardBoard
from pipeline.shards.failures import failure_of
from pipeline.shards.pace import Pace
from pipeline.shards.work import MadeShard
from storage_schemas.errors import CacheWriteError
from storage_schemas.manifest import Counts, LedgerEntry, shard_name


def test_a_sparkline_goes_from_the_lowest_bar_to_the_highest():
    assert sparkline([0.0, 1.0, 7.0]) == "▁▂█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    falling = sparkline([float(i) for i in range(1000, 0, -1)])
    assert len(falling) == 60
    assert (falling[0], falling[-1]) == ("█", "▁")
    assert list(falling) == sorted(falling, reverse=True)


def test_the_curves_say_how_far_and_show_the_last_entry():
    entries = [{"step": float(i), "loss": 9.0 - i, "steps": 5.0} for i in range(1, 6)]
    entries[2]["held_out_nll"] = 2.5
    text = curves_text("/out", entries)
    assert "**loss**: 8 → 4, lowest 4" in text
    assert "**held-out NLL, nats a token**: 2.5 → 2.5, lowest 2.5" in text
    assert text.splitlines()[-1] == "| 5 | 4 |  |"
    assert "| 3 | 6 | 2.5 |" in text


def test_a_long_curve_is_a_short_table_with_every_evaluation_in_it():
    entries = [{"step": float(i), "loss": 1.0} for i in range(1, 10_001)]
    entries[4321]["held_out_nll"] = 2.5
    rows = [line for line in curves_text("/out", entries).splitlines() if line.startswith("| ")]
    assert len(rows) <= 2 + 20 + 1
    assert "| 4322 | 1 | 2.5 |" in rows
    assert rows[-1] == "| 10000 | 1 |  |"


def test_a_loss_that_is_not_a_number_leaves_the_rest_of_the_curve():
    entries = [{"step": 1.0, "loss": 3.0}, {"step": 2.0, "loss": float("nan")}]
    text = curves_text("/out", entries)
    assert "**loss**: 3 → 3, lowest 3" in text
    assert text.splitlines()[-1] == "| 2 | nan |"


def test_the_report_beside_a_run_is_found(tmp_path):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    assert report_beside(str(run)) is None
    page = tmp_path / "runs" / "report.html"
    page.touch()
    assert report_beside(str(run)) == page
    assert report_beside("s3://bucket/runs/a") is None


def test_a_key_is_one_for_a_place_however_it_is_written(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert artifact_key("shards", "My_Cache") == artifact_key("shards", tmp_path / "My_Cache")
    assert artifact_key("shards", "My_Cache").startswith("shards-my-cache-")
    assert artifact_key("shards", "My_Cache") != artifact_key("shards", "other/My_Cache")
    assert asset_of("My_Cache") == asset_of(str(tmp_path / "My_Cache"))


@pytest.mark.parametrize("address", ["/a b/c#d", "/100%/{x}", "/" + "long/" * 200, "s3://b/c d"])
def test_a_place_that_prefect_takes_no_key_of_still_has_one_of_its_own(address):
    asset = asset_of(address)
    assert asset.key != asset_of(address + "2").key
    assert asset.properties is not None
    assert asset.properties.name == address.rstrip("/")


def test_failed_shards_come_first_and_old_rows_are_left_out_by_number():
    board = ShardBoard("/cache", num_found=7, total=151)
    pace = Pace([1] * 151)
    for part in range(150):
        board.made(made := made_shard(part), pace.after(made, 1))
    board.failed(failure_of(shard_name(150, 0, 1), CacheWriteError("the disk is full")))
    progress, table = (page.draw() for page in board.pages())
    rows = json.loads(table.format(_sync=True))
    assert [rows[0]["state"], rows[0]["reason"]] == ["failed", "the disk is full"]
    assert rows[1]["shard"] == shard_name(149, 0, 1)  # the youngest
    assert rows[1]["records skipped"] == "2 empty_response"
    assert len(rows) == 100
    assert "the 51 oldest rows are left out" in table.description
    assert progress.progress == pytest.approx(100 * 157 / 158)
    assert "150 of 151 shards of this run committed, 1 not made" in progress.description


def made_shard(part: int) -> MadeShard:
    name = shard_name(part, 0, 1)
    counts = Counts(
        num_records=3,
        num_examples=1,
        num_views=1,
        num_chunks=4,
        num_masked=5,
        num_token_rows=0,
        num_joint_rows=0,
        skips={"empty_response": 2},
    )
    return MadeShard(
        entry=LedgerEntry(
            shard=name,
            folder=f"shards/{name}",
            part=part,
            view_start=0,
            view_stop=1,
            files=(),
            counts=counts,
        ),
        positions=6,
        teacher_tokens=7,
        seconds=0.5,
        load_seconds=0.0,
        not_finite=(),
        worker="host:1",
    )
