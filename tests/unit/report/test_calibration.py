"""Reliability and agreement, worked by hand."""

import math

import numpy as np
import pytest

from pipeline.report.calibration import calibration_error, correlation, reliability


def test_a_reliability_diagram_worked_by_hand():
    # Bins 0.1-0.2: 0.12, 0.18, one right. 0.9-1: 0.95, 1.0, both right, the certain one included.
    bins = reliability(
        np.array([0.12, 0.95, 0.18, 1.0], np.float32), np.array([True, True, False, True])
    )
    assert [(one.num, round(one.confidence, 6), one.accuracy) for one in bins] == [
        (2, 0.15, 0.5),
        (2, 0.975, 1.0),
    ]
    # (2 |0.5 - 0.15| + 2 |1 - 0.975|) / 4 = (0.7 + 0.05) / 4 = 0.1875
    assert calibration_error(bins) == pytest.approx(0.1875)


def test_a_calibrated_model_has_almost_no_error_and_an_overconfident_one_its_excess():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.05, 0.75, 40_000).astype(np.float32)
    is_correct = rng.random(40_000) < confidence
    assert calibration_error(reliability(confidence, is_correct)) < 0.01
    excess = calibration_error(reliability(confidence + np.float32(0.2), is_correct))
    assert excess == pytest.approx(0.2, abs=0.01)


def test_correlations():
    x = np.array([-1.0, -2.0, -4.0], np.float32)
    assert correlation(x, 3 * x + 1) == pytest.approx(1.0)
    assert correlation(x, -x) == pytest.approx(-1.0)
    assert math.isnan(correlation(x, np.ones(3, np.float32)))
