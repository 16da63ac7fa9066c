"""finpercep-user-study: people compare results in a browser. Make the study, serve it, take votes out, analyse."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finpercep_plugin.cli.arguments import natural, positive
from finpercep_plugin.study.definition import Rules, Settings, Study, StudyError

if TYPE_CHECKING:
    from finpercep_plugin.study.session import Session

__all__ = ['main', 'serve_app']

_CONSENT = (
    'You compare pictures that were restored by computers. Taking part is voluntary, and you can stop at any time '
    'without giving a reason.\n'
    'What is stored: your answers, how long you looked, how far you zoomed, and when. Neither your name nor your '
    'address nor anything else about you is stored.\n'
    'The answers are analysed and published as statistics, and may be published one by one.'
)


def _parser() -> argparse.ArgumentParser:
    codes = 'exit codes: 0 done; 2 wrong usage or input; 130 interrupted'
    parser = argparse.ArgumentParser(prog='finpercep-user-study', description=__doc__, epilog=codes)
    verbs = parser.add_subparsers(dest='verb', required=True)
    _create_arguments(verbs.add_parser('create', help='make a study from folders of results'))
    _serve_arguments(verbs.add_parser('serve', help='let raters in'))
    export = verbs.add_parser('export', help='votes as CSV, or the study as files that need no server')
    analyse = verbs.add_parser('analyse', help='preference rates, ranking, agreement; a report')
    for verb in (export, analyse):
        verb.add_argument('study', type=Path, metavar='STUDY')
        text = 'what raters of a static export sent back'
        verb.add_argument('--answers', type=Path, nargs='+', default=[], metavar='FILE', help=text)
    what = export.add_mutually_exclusive_group(required=True)
    what.add_argument('--csv', type=Path, metavar='FILE', help='a row a vote')
    what.add_argument('--static', type=Path, metavar='DIR', help='pages that open from disk or any web space')
    text = 'pages of --static (default: %(default)s)'
    export.add_argument('--raters', type=positive, default=1, metavar='N', help=text)
    analyse.add_argument('--out', type=Path, metavar='DIR', help='default: STUDY/analysis')
    analyse.add_argument('--seed', type=natural, default=0, metavar='N', help='of the bootstrap')
    return parser


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    path = "a folder, or a path such as 'results/{name}_x4'"
    methods = 'results of a method; give two or more'
    parser.add_argument('study', type=Path, metavar='STUDY', help='folder to make')
    parser.add_argument('--lq', required=True, metavar='PATH', help=f'low-quality pictures: {path}')
    parser.add_argument('--method', required=True, action='append', metavar='NAME=PATH', help=methods)
    parser.add_argument('--gt', metavar='PATH', help='ground truth, for attention checks')
    parser.add_argument('--skip-unmatched', action='store_true', help='leave out pictures that some folder lacks')
    parser.add_argument('--title', default='Which picture is better?', help='raters read it (default: %(default)s)')
    parser.add_argument('--consent', type=Path, metavar='FILE', help='text that raters agree to')
    parser.add_argument(
        '--reference', default='', metavar='NAME', help='compare it with each other (default: all pairs)'
    )
    fitting = 'default: 4, at most half of the trials'
    parser.add_argument('--trials', type=positive, metavar='N', help='votes of each rater (default: 40, at most all)')
    parser.add_argument('--checks', type=natural, metavar='N', help=f'attention checks ({fitting}; 0 without --gt)')
    parser.add_argument('--repeats', type=natural, metavar='N', help=f'comparisons asked twice ({fitting})')
    for name, kind, text in (
        ('training', natural, 'practice trials'),
        ('raters', natural, 'seats; 0: no limit'),
        ('seed', natural, 'of order, sides and who sees what'),
        ('min_seconds', float, 'that each trial is looked at'),
        ('idle_minutes', float, 'without an answer, until a seat is free again'),
    ):
        default, flag = getattr(Settings, name), f'--{name.replace("_", "-")}'
        parser.add_argument(flag, type=kind, default=default, metavar='N', help=f'{text} (default: %(default)s)')
    for field in dataclasses.fields(Rules):
        flag, text = f'--rule-{field.name.replace("_", "-")}', 'whom to leave out (default: %(default)s)'
        parser.add_argument(flag, type=float, default=field.default, metavar='X', help=text)


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    host = 'address to listen on (default: %(default)s: this machine alone)'
    proxy = 'behind a proxy on this machine: take addresses of raters from its X-Forwarded-For'
    public = 'where raters reach it, such as https://study.example.org'
    parser.add_argument('study', type=Path, metavar='STUDY')
    parser.add_argument('--host', default='127.0.0.1', help=host)
    parser.add_argument('--port', type=natural, default=8000, metavar='N', help='default: %(default)s')
    parser.add_argument('--public-url', default='', metavar='URL', help=public)
    parser.add_argument('--proxy', action='store_true', help=proxy)
    for flag, default, text in (('--rate', 30, 'requests a second'), ('--joins', 20, 'new raters a minute')):
        text += ' for one address; 0: no limit (default: %(default)s)'
        parser.add_argument(flag, type=float, default=default, metavar='N', help=text)


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return {'create': _create, 'serve': _serve, 'export': _export, 'analyse': _analyse}[args.verb](args)
    except ImportError as error:
        print(f"finpercep-user-study: {error}; pip install 'finpercep_plugin[study]'", file=sys.stderr)
    except (StudyError, OSError) as error:
        print(f'finpercep-user-study: {error}', file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _create(args: argparse.Namespace) -> int:
    from finpercep_plugin.study.pictures import Sources, create, pair

    methods = dict(_method(text) for text in args.method)
    if len(methods) < max(2, len(args.method)):
        raise StudyError('--method: give at least two methods, each once')
    sources = Sources(args.lq, methods, args.gt)
    items, pairs = len(pair(sources, args.skip_unmatched)), len(methods) * (len(methods) - 1) // 2
    pairs = len(methods) - 1 if args.reference else pairs
    for checks in range(4 if args.gt else 0, -1, -1) if args.checks is None else [args.checks]:
        trials = args.trials or max(1, min(40, pairs * (items - max(args.training, checks))))
        if checks <= trials // 2:
            break
    repeats = args.repeats if args.repeats is not None else min(4, trials // 2)
    names = ('training', 'raters', 'min_seconds', 'idle_minutes', 'reference', 'seed')
    settings = Settings(trials=trials, checks=checks, repeats=repeats, **{name: getattr(args, name) for name in names})
    rules = Rules(**{f.name: getattr(args, f'rule_{f.name}') for f in dataclasses.fields(Rules)})
    consent = args.consent.read_text(encoding='utf-8') if args.consent else _CONSENT
    study = create(args.study, sources, settings, rules, args.title, consent, args.skip_unmatched)
    print(f'{args.study}: {len(study.cells)} comparisons of {len(methods)} methods; {settings.trials} for each rater')
    print(f'next: finpercep-user-study serve {args.study}')
    return 0


def _method(text: str) -> tuple[str, str]:
    name, sep, path = text.partition('=')
    if not sep or not path:
        raise StudyError(f'--method: expected NAME=PATH, got {text!r}')
    return name, path


def serve_app(session: Session, host: str, public: str, rate: float, joins: float):
    """The guarded application; the names it answers to follow from the address it listens on."""
    from finpercep_plugin.study.app import create_app
    from finpercep_plugin.study.guard import Guard

    known = urlsplit(public)
    everywhere = host in ('0.0.0.0', '::', '') and not public
    names = {'127.0.0.1', 'localhost', '[::1]', host, known.hostname or ''} - {''}
    return Guard(create_app(session), () if everywhere else names, {known.netloc} - {''}, rate, joins)


def _serve(args: argparse.Namespace) -> int:
    import uvicorn

    from finpercep_plugin.study.session import Session

    if args.public_url and not urlsplit(args.public_url).netloc:
        raise StudyError(
            f'--public-url: expected an address such as https://study.example.org, got {args.public_url!r}'
        )
    session = Session(args.study)
    base = (
        args.public_url.rstrip('/')
        or f'http://{"localhost" if args.host in ("0.0.0.0", "::") else args.host}:{args.port}'
    )
    print(f'link for raters: {base}/s/{session.secrets.study}', flush=True)
    print(
        f'votes: {base}/api/admin/votes.csv with the header "Authorization: Bearer ..." of {args.study}/secrets.json',
        flush=True,
    )
    if args.host not in ('127.0.0.1', 'localhost', '::1'):
        print(
            'note: reachable from other machines, without encryption; put a proxy with HTTPS before it', file=sys.stderr
        )
    app = serve_app(session, args.host, args.public_url, args.rate, args.joins)
    # No access log: addresses in it would hold the raters' links.
    uvicorn.run(
        app,
        host=args.host,
        port=args.port,
        log_level='warning',
        access_log=False,
        server_header=False,
        proxy_headers=args.proxy,
    )
    return 0


def _export(args: argparse.Namespace) -> int:
    from finpercep_plugin.study.session import Session
    from finpercep_plugin.study.votes import csv_text, read_answers, vote_rows

    session = Session(args.study)
    if args.static:
        from finpercep_plugin.study.static_export import write_static

        pages = write_static(session, args.static, args.raters)
        print(f'{len(pages)} pages, one a rater: {pages[0]} ...; the answers they send back: analyse --answers')
        return 0
    rows = vote_rows(session.study, session.store, read_answers(args.answers, session.study, session.store))
    args.csv.write_text(csv_text(rows), encoding='utf-8')
    print(f'{args.csv}: {len(rows)} votes')
    return 0


def _analyse(args: argparse.Namespace) -> int:
    from finpercep_plugin.study.analysis import analyse
    from finpercep_plugin.study.analysis_page import write_analysis
    from finpercep_plugin.study.session import Session
    from finpercep_plugin.study.votes import read_answers, vote_rows

    began = time.perf_counter()
    session = Session(args.study)
    study: Study = session.study
    rows = vote_rows(study, session.store, read_answers(args.answers, study, session.store))
    analysis = analyse(study, rows, [rater.number for rater, _ in session.store.raters()], args.seed)
    command = ' '.join(['finpercep-user-study', *sys.argv[1:]])
    report = write_analysis(study, analysis, rows, args.out or args.study / 'analysis', command)
    kept = [rater for rater in analysis.raters if not rater.reasons]
    print(f'{len(rows)} votes; {len(kept)} of {len(analysis.raters)} raters count')
    for p in analysis.preferences:
        if not p.group:
            print(f'{p.question:9s} {p.first} over {p.second}: {p.clustered or p.wilson} ({p.votes} votes)')
    print(f'{time.perf_counter() - began:.0f} s. Open {report}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
