"""What the numbers say, in a sentence for each control; no more than they do."""

from collections.abc import Iterator, Sequence

from pipeline.report.contents import Gain, HeldOutPart, Setting


def verdict(settings: Sequence[Setting], held_out: HeldOutPart | None) -> tuple[str, ...]:
    """The best comparable setting of each control, then the settings that do not compare."""
    return (*_of_controls(settings, held_out), *_not_comparable(settings))


def _of_controls(settings: Sequence[Setting], held_out: HeldOutPart | None) -> Iterator[str]:
    controls = [one for one in settings if one.is_control]
    if not controls:
        yield (
            "There is no control (a run of the same start, steps and views, with cross-entropy "
            "alone), so nothing here says what distillation adds."
        )
        return
    if held_out is None:
        yield (
            "No held-out text was given, and training losses of different objectives do not "
            "compare, so nothing here says which student is better."
        )
        return
    gains = {row.setting: row.gain for row in held_out.rows if row.gain is not None}
    for control in controls:
        compared = [
            (one, gains[one.key])
            for one in settings
            if one.control == control.key and one.is_comparable
        ]
        if compared:
            yield _sentence(control, compared)


def _sentence(control: Setting, compared: list[tuple[Setting, Gain]]) -> str:
    best, gain = max(compared, key=lambda pair: pair[1].bound.mean)
    bound = gain.bound
    of_many = f" (the best of {len(compared)} distilled settings)" if len(compared) > 1 else ""
    if not bound.is_known:
        return (
            f"{best.label}{of_many} has a held-out bound {abs(bound.mean):.4f} nats a token "
            f"{'below' if bound.mean > 0 else 'above'} its control {control.label}; no interval is "
            "known, since the two have no seed in common."
        )
    interval = f"95 % interval {bound.low:+.4f} to {bound.high:+.4f}"
    if not bound.excludes_zero:
        said = f"no difference beyond the noise between {best.label}{of_many} and {control.label}"
        said = f"{said[0].upper()}{said[1:]}: gain {bound.mean:+.4f} nats a token ({interval}"
    else:
        word = "gains" if bound.mean > 0 else "loses"
        said = (
            f"{best.label}{of_many} {word} {abs(bound.mean):.4f} nats a token "
            f"{'over' if bound.mean > 0 else 'against'} {control.label} ({interval}"
        )
    if bound.over == "seeds":
        return f"{said}, over {bound.num} paired seeds)."
    return (
        f"{said}, over {bound.num} records of one seed: the noise of training is not in it, so "
        "more seeds may say otherwise)."
    )


def _not_comparable(settings: Sequence[Setting]) -> Iterator[str]:
    labels = {one.key: one.label for one in settings}
    for one in settings:
        if one.control is not None and one.differences:
            yield (
                f"Not comparable: {one.label} differs from {labels[one.control]} in more than the "
                f"objective ({'; '.join(one.differences)})."
            )
