"""The pages of stage 2 as text: curves, and the report that lies beside a run."""

from flows.curve_pages import curves_text, report_beside, sparkline


def test_a_curve_is_a_line_of_bars_and_a_table():
    assert sparkline([0.0, 1.0, 2.0]) == "▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(map(float, range(1000))))) == 60
    text = curves_text("/runs/a", [{"step": 1.0, "loss": 3.0}, {"step": 2.0, "loss": 1.0}])
    assert "3 → 1, lowest 1" in text
    assert text.rstrip().endswith("| 2 | 1 |")


def test_a_report_is_looked_for_in_the_runs_folder_and_beside_it(tmp_path):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    assert report_beside(str(run)) is None
    (tmp_path / "runs" / "report.html").touch()
    assert report_beside(str(run)) == tmp_path / "runs" / "report.html"
    assert report_beside("s3://bucket/run") is None
