"""The verdict claims what the interval allows, and no more."""

from dataclasses import replace

import pytest

from pipeline.report.contents import Gain, HeldOutPart, HeldOutRow, Setting
from pipeline.report.estimates import over_records, over_seeds, without_interval
from pipeline.report.verdict import verdict

CONTROL = Setting(
    key="s0",
    label="ce",
    objective="masked_nll",
    details={},
    start="m",
    cache="d",
    num_views=1,
    steps=(1,),
    seeds=(0,),
    runs=("r",),
    is_control=True,
)
OURS = replace(CONTROL, key="s1", label="kl", is_control=False, control="s0")
OTHER = replace(OURS, key="s2", label="tidal")


def _part(**gains):
    zero = without_interval(0.0)
    rows = [
        HeldOutRow(
            label=key,
            setting=key,
            bound=zero,
            bound_per_byte=zero,
            accuracy=zero,
            nll_L=(),
            gain=Gain(bound=bound, accuracy=zero, nll_L=(), seeds=(0,)),
        )
        for key, bound in gains.items()
    ]
    return HeldOutPart(
        fingerprint="f",
        source="text",
        num_records=1,
        num_tokens=1,
        num_bytes=1,
        levels=(),
        rows=tuple(rows),
    )


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (over_seeds([0.30, 0.31, 0.32]), "kl gains 0.3100 nats a token over ce"),
        (over_seeds([-0.30, -0.31, -0.32]), "kl loses 0.3100 nats a token against ce"),
        (over_seeds([0.3, -0.3, 0.1]), "No difference beyond the noise between kl and ce"),
        (over_records(0.3, 0.1, 50), "over 50 records of one seed"),
        (without_interval(0.3), "no seed in common"),
    ],
)
def test_the_sentence_follows_from_the_interval(bound, words):
    (sentence,) = verdict([CONTROL, OURS], _part(s1=bound))
    assert words in sentence


def test_the_best_of_several_is_named_as_such():
    gains = {"s1": over_seeds([0.1, 0.11]), "s2": over_seeds([0.2, 0.21])}
    (sentence,) = verdict([CONTROL, OURS, OTHER], _part(**gains))
    assert sentence.startswith("tidal (the best of 2 distilled settings)")


def test_what_does_not_compare_has_no_part_in_it_but_is_named():
    other = replace(OTHER, differences=("start: a against b",))
    gains = {"s1": over_seeds([0.1, 0.11]), "s2": over_seeds([0.2, 0.21])}
    first, second = verdict([CONTROL, OURS, other], _part(**gains))
    assert first.startswith("kl gains")
    assert second == (
        "Not comparable: tidal differs from ce in more than the objective (start: a against b)."
    )


def test_without_a_control_nothing_is_claimed():
    (sentence,) = verdict([replace(OURS, control=None)], None)
    assert "There is no control" in sentence
