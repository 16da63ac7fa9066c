"""finpercep-score: folders of results -> scores of every picture, and tables and a page that compare methods."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from finpercep_plugin.cli.score_arguments import parser

if TYPE_CHECKING:
    from finpercep_plugin.ranks import Ranks
    from finpercep_plugin.scoring.engine import Scorer
    from finpercep_plugin.scoring.metrics import Metric
    from finpercep_plugin.scoring.outputs import Outputs
    from finpercep_plugin.scoring.sources import Item, Pairing

__all__ = ['main']


def main(argv: list[str] | None = None) -> int:
    """Parse, score, say what was skipped; returns the exit code."""
    args = parser().parse_args(argv)
    if args.offline:
        from finpercep_plugin.cli.offline import go_offline

        go_offline()
    from finpercep_plugin.cli.score_run import score, tell_plan
    from finpercep_plugin.ranks import Ranks
    from finpercep_plugin.scoring.engine import windows_of
    from finpercep_plugin.scoring.journal import Journal

    out = Path(args.out)
    args.formats = list(dict.fromkeys(args.formats or [out.suffix[1:]]))
    try:
        ranks = Ranks.of_environment()
        pairing = _pairing(args, out)
        told = _outputs(args, out, pairing, shlex.join(['finpercep-score', *(sys.argv[1:] if argv is None else argv)]))
        journal = Journal(out.with_name(f'{out.stem}.cache'), ranks, args.fresh and not args.dry_run)
        scorer = _scorer(args, told, journal, ranks)
        windows = windows_of(pairing.items)
        missing = scorer.missing(windows) if len(journal) else {m.label: len(pairing.items) for m in told.metrics}
        if args.dry_run:
            return tell_plan(told, pairing, missing, args.out)
        for metric in told.metrics:
            if missing[metric.label]:
                _load(metric, scorer)
    except (OSError, ImportError, KeyError, TypeError, ValueError, RuntimeError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 130
    try:
        journal.open()
    except OSError as error:
        return _refuse(f'--out: cannot write {args.out}: {error}')
    return score(scorer, windows, pairing, told, ranks, args)


def _pairing(args: argparse.Namespace, out: Path) -> Pairing:
    """The items of the run.

    Raises:
        OSError, ValueError: see `pair`; no pictures; options that exclude each other.
    """
    from finpercep_plugin.images import list_images
    from finpercep_plugin.prompts import read_prompts
    from finpercep_plugin.scoring.sources import Pairing, Templates, common_root, name_methods, pair, plain_items

    if bool(args.inputs) == bool(args.methods):
        raise ValueError('expected either INPUT or --methods')
    prompts = read_prompts(args.prompts) if args.prompts else {}
    templates = Templates(args.sr_name, args.gt_name, args.lq_name)
    skip = [args.maps] if args.maps else []
    if args.methods:
        roots = name_methods(args.methods)
        paths = {name: list_images([folder], skip=skip) for name, folder in roots.items()}
    else:
        roots, paths = {'': common_root(args.inputs)}, {'': list_images(args.inputs, skip=skip)}
    for name, found in paths.items():
        if not found:
            raise ValueError(f'no images in {roots[name] if name else ", ".join(args.inputs)}')
    plain = not args.methods and not args.gt and not args.lq and args.sr_name == '{stem}'
    if plain:
        pairing = Pairing(plain_items(paths[''], roots[''], prompts), {})
    else:
        pairing = pair(paths, roots, args.gt, args.lq, templates, prompts)
    if args.baseline and args.baseline not in roots:
        raise ValueError(f'--baseline: no method {args.baseline!r}; one of: {", ".join(roots)}')
    return Pairing(_limited(pairing.items, args.limit, args.prompt), pairing.unmatched)


def _limited(items: Sequence[Item], limit: int | None, prompt: str) -> list[Item]:
    """The items of the first keys; those without a text of their own have `prompt`."""
    keys = set(list(dict.fromkeys(item.key for item in items))[:limit])
    kept = [item for item in items if item.key in keys]
    return [dataclasses.replace(item, prompt=item.prompt or prompt) for item in kept] if prompt else kept


def _outputs(args: argparse.Namespace, out: Path, pairing: Pairing, command: str) -> Outputs:
    """What is measured and written.

    Raises:
        OSError, ValueError, ImportError: there is no such metric, model, protocol or format.
    """
    from finpercep_plugin.scoring.metrics import metric_of, rm_metric
    from finpercep_plugin.scoring.outputs import FORMATS, Outputs
    from finpercep_plugin.scoring.protocols import find_protocol
    from finpercep_plugin.scoring.requests import resolve
    from finpercep_plugin.scoring.table import columns_of

    if not args.rm and not args.metrics:
        raise ValueError('nothing to measure: give --rm, --metrics, or both')
    if unknown := [name for name in args.formats if name not in FORMATS]:
        raise ValueError(f'--out: expected a name that ends in .{", .".join(FORMATS)}, got .{unknown[0]}')
    if args.maps and not args.rm:
        raise ValueError('--maps needs --rm')
    protocol = find_protocol(args.protocol, args.crop_border, args.sizes)
    metrics = []
    if args.rm:
        if not Path(args.rm).is_file():
            raise ValueError(f'--rm: no reward model at {Path(args.rm).absolute()}')
        metrics.append(rm_metric(args.rm, args.top, protocol, _tell_stage))
    metrics += [metric_of(resolve(text, protocol), protocol) for text in args.metrics]
    columns_of(metrics)
    for field in ('gt', 'lq', 'prompt'):
        needing = [metric.label for metric in metrics if field in metric.needs]
        if needing and not getattr(args, field) and not (field == 'prompt' and args.prompts):
            raise ValueError(f'--metrics {" ".join(needing)}: give --{field}, which is needed')
    if not pairing.items:
        raise ValueError('no picture is named as --sr-name says')
    told = (protocol, pairing.unmatched, command, args.device, args.baseline, args.report_pictures)
    return Outputs(out, args.formats, metrics, *told)


def _tell_stage(rm: Any) -> None:
    if getattr(rm, 'stage', None) == 0:
        print('finpercep-score: this is an RM_0, which has no map: map_mean and map_max are 0', file=sys.stderr)


def _scorer(args: argparse.Namespace, told: Outputs, journal: Any, ranks: Ranks) -> Scorer:
    """
    Raises:
        ValueError: the device cannot be used.
    """
    from finpercep_plugin.scoring.engine import Scorer

    try:
        device = ranks.device(args.device)
    except ValueError as error:
        raise ValueError(f'--device: {error}') from error
    keep_maps = bool(args.maps) or 'html' in told.formats
    return Scorer(told.metrics, told.protocol, device, args.batch, journal, keep_maps, args.threads, args.top)


def _load(metric: Metric, scorer: Scorer) -> None:
    """
    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        metric.get(scorer.device)
    except Exception as error:  # weights in the wrong form raise a dozen types; each means the same to the user
        raise ValueError(f'{metric.blame}: {error}') from error


def _refuse(message: str) -> int:
    print(f'finpercep-score: {message}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
