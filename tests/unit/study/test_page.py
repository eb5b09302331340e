"""The page's tables come from the committed results, and say what those say."""

import json
from pathlib import Path

import pytest

from pipeline.study.publish import PAGES, RESULTS, answers, read_results
from pipeline.study.results import STUDY_FILE
from pipeline.study.tables import all_tables, fill_page

ROOT = Path(__file__).parents[3]


def test_a_table_takes_the_place_between_its_markers_and_nothing_else_moves():
    page = "before\n<!-- table views-A -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    filled = fill_page(page, {"views-A": "| new |", "other": "| unused |"})
    assert filled == "before\n<!-- table views-A -->\n| new |\n<!-- end -->\nafter <!-- end -->\n"
    assert fill_page(filled, {"views-A": "| new |"}) == filled
    empty = "<!-- table views-A -->\n<!-- end -->\n"
    assert "| new |" in fill_page(empty, {"views-A": "| new |"})


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_pages_show_the_committed_results(name: str):
    runs, records = read_results(ROOT)
    study = json.loads((ROOT / RESULTS / STUDY_FILE).read_text(encoding="utf-8"))
    page = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- table " in page
    assert fill_page(page, all_tables(runs, records, study)) == page


def test_the_committed_answers_are_those_of_the_committed_runs():
    runs, records = read_results(ROOT)
    study = json.loads((ROOT / RESULTS / STUDY_FILE).read_text(encoding="utf-8"))
    again = json.loads(json.dumps(answers(runs, records)))
    assert again.keys() == study["answers"].keys()
    for letter in "AB":
        for label, gain in again[f"objectives {letter}"].items():
            committed = study["answers"][f"objectives {letter}"][label]
            for kind in ("over_seeds", "over_files"):
                assert gain[kind]["mean"] == pytest.approx(committed[kind]["mean"], abs=1e-9)
