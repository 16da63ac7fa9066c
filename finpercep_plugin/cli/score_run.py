"""finpercep-score, once it is clear what is to be done: score, show progress, write, say what happened."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Mapping, Sequence

from finpercep_plugin.scoring.outputs import write_outputs, write_overlays

if TYPE_CHECKING:
    from finpercep_plugin.ranks import Ranks
    from finpercep_plugin.scoring.engine import Result, Scorer
    from finpercep_plugin.scoring.outputs import Outputs
    from finpercep_plugin.scoring.sources import Item, Pairing

__all__ = ['score', 'tell_plan']


def tell_plan(told: Outputs, pairing: Pairing, missing: Mapping[str, int], out: str) -> int:
    """What a run would do; returns the exit code."""
    counts: dict[str, int] = {}
    for item in pairing.items:
        counts[item.method] = counts.get(item.method, 0) + 1
    for method, count in counts.items():
        print(f'{method or "pictures"}: {count}')
    print(f'protocol {told.protocol_text()}')
    for metric in told.metrics:
        needs = f', needs {", ".join(sorted(metric.needs))}' if metric.needs else ''
        print(f'{metric.label}: {metric.version}{needs}; {missing[metric.label]} of {len(pairing.items)} to score')
    _tell_unmatched(pairing.unmatched)
    print(f'would write {", ".join(str(told.path(name)) for name in told.formats)}')
    return 0


def score(
    scorer: Scorer,
    windows: Sequence[Sequence[Item]],
    pairing: Pairing,
    told: Outputs,
    ranks: Ranks,
    args: argparse.Namespace,
) -> int:
    """Score this process' windows; the first process writes what all have scored. Returns the exit code."""
    try:
        results = _results(scorer, ranks.share(windows), args, ranks)
        if results is None:
            return 1
        if ranks.world > 1:
            if ranks.gather('done') is None:
                print(
                    'finpercep-score: the processes cannot meet; run it once more with one, to write', file=sys.stderr
                )
                return 1
            if ranks.rank > 0:
                return 1 if any(result.errors for result in results) else 0
            scorer.journal.read()
            results = list(scorer.results(windows))  # all from the journal, but for what failed
    except KeyboardInterrupt:
        print(
            f'interrupted; what is scored is in {scorer.journal.folder}, and the same command goes on', file=sys.stderr
        )
        return 130
    except OSError as error:
        return _refuse(f'--out: cannot write {args.out}: {error}')
    place = {item: number for number, item in enumerate(pairing.items)}
    results.sort(key=lambda result: place[result.item])
    return _write(results, scorer, told, args)


def _results(
    scorer: Scorer, windows: Sequence[Sequence[Item]], args: argparse.Namespace, ranks: Ranks
) -> list[Result] | None:
    """None where one failed and that ends the run."""
    from tqdm import tqdm

    results = []
    total, quiet = sum(map(len, windows)), args.quiet or ranks.rank > 0
    with tqdm(total=total, unit='image', disable=quiet, desc='scoring') as bar:
        for result in scorer.results(windows):
            results.append(result)
            bar.update()
            if result.errors:
                name = f'{result.item.method}/{result.item.name}' if result.item.method else result.item.name
                bar.write(f'skipped {name}: {"; ".join(result.errors)}', file=sys.stderr)
                if args.on_error == 'fail':
                    return None
    return results


def _write(results: Sequence[Result], scorer: Scorer, told: Outputs, args: argparse.Namespace) -> int:
    failed_maps = write_overlays(args.maps, results, scorer.journal, told) if args.maps else {}
    for item, error in failed_maps.items():
        print(f'skipped {item.name}: {error}', file=sys.stderr)
    try:
        rows = write_outputs(told, results, scorer.journal, failed_maps)
    except (OSError, ValueError) as error:
        return _refuse(f'--out: cannot write {args.out}: {error}')
    failed = [row for row in rows if row.error]
    tiled = [row for row in rows if row.tiles > 1]
    if not args.quiet:
        now = sum(result.scored > 0 for result in results)
        before = f', {len(rows) - len(failed) - now} of them before' if now < len(rows) - len(failed) else ''
        print(f'{len(rows) - len(failed)} of {len(rows)} images scored{before}; {_written(told)}')
        _tell_unmatched(told.unmatched)
    if tiled:
        names = ', '.join(row.path for row in tiled[:5])
        print(
            f'{len(tiled)} did not fit into memory and were scored in tiles, near to the whole: {names}',
            file=sys.stderr,
        )
    if failed:
        print(f'{len(failed)} skipped: {", ".join(row.path for row in failed)}', file=sys.stderr)
    return 1 if failed else 0


def _written(told: Outputs) -> str:
    return f'written: {", ".join(str(told.path(name)) for name in told.formats)}'


def _tell_unmatched(unmatched: Mapping[str, Sequence[str]]) -> None:
    for why, names in unmatched.items():
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        print(f'{why}: {", ".join(names[:5])}{more}', file=sys.stderr)


def _refuse(message: str) -> int:
    print(f'finpercep-score: {message}', file=sys.stderr)
    return 2
