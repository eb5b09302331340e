"""How a run of stage 2 shows where it stands: a line in a log, a bar on a terminal."""

import io
import logging

from rich.console import Console

from flows.progress import bars_on, report_metrics

ENTRY = {
    "step": 30.0,
    "steps": 120.0,
    "seconds_left": 3723.0,
    "loss": 1.25,
    "held_out_nll": 2.5,
    "held_out_nll_at_0.1": 2.0,
    "tokens_per_s": 12345.0,
    "wait_share": 0.002,
    "progress": 0.25,
}


def shown(*entries):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with bars_on(console):
        for entry in entries:
            report_metrics(logging.getLogger("test"))(entry)
    return console.file.getvalue().removesuffix("\x1b[?25h")  # the cursor is shown again


def test_a_log_line_tells_the_step_the_time_left_and_the_figures(caplog):
    with caplog.at_level(logging.INFO):
        report_metrics(logging.getLogger("test"))(ENTRY)
    assert caplog.messages == [
        "step 30 of 120, 01:02:03 left  loss 1.25  held_out_nll 2.5  tokens_per_s 12345  "
        "wait_share 0.002"
    ]


def test_the_bar_tells_steps_time_left_loss_held_out_likelihood_and_pace():
    bar = shown(ENTRY).splitlines()[-1]
    for part in ("steps", "30/120", "01:02:03 left", "loss 1.25", "held out 2.5", "12,345 tok/s"):
        assert part in bar


def test_the_bar_goes_on_showing_the_last_held_out_likelihood():
    later = {**ENTRY, "step": 40.0, "loss": 1.125}
    del later["held_out_nll"]
    text = shown(ENTRY, later)
    bar = text.splitlines()[-1]
    assert "40/120" in bar
    assert "loss 1.125  held out 2.5" in bar
    assert text.count("held_out_nll 2.5") == 1  # the line of the evaluation itself
