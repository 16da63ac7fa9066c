"""Photos that are in two data sets."""

from __future__ import annotations

from typing import Sequence

from finpercep_plugin.data.check.report import Problem, Report

__all__ = ['compare', 'leaks']


def leaks(train: Report, held_out: Report) -> list[Problem]:
    """Every held-out photo that is also among the training photos.

    Photos are the same when their pixels are, or, since a built set keeps no more of them, when name and size in bytes
    are. Cut, scaled or recompressed copies are not found.
    """
    found: dict[str, str] = {}
    for identity in held_out.photos.keys() & train.photos.keys():
        found.setdefault(held_out.photos[identity], train.photos[identity])
    return [
        Problem(name, 'leak', f'of {held_out.source}, is also in {train.source}' + (f' as {other}' * (other != name)))
        for name, other in sorted(found.items())
    ]


def compare(source: str, train: Sequence[Report], held_out: Sequence[Report]) -> Report:
    """All leaks between training and held-out data."""
    photos = len({name for report in held_out for name in report.photos.values()})
    report = Report(source, 'validation photos looked for among the training photos', photos)
    report.findings = [problem for a in train for b in held_out for problem in leaks(a, b)]
    return report
