"""finpercep-build-preferences: low-quality images -> a preference set: a generator's samples, ranked by a reward."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Mapping

from finpercep_plugin import generator_section
from finpercep_plugin.cli.arguments import positive

__all__ = ['main']

_EPILOG = """example: finpercep-build-preferences -opt options/ccl_dpo_small.yml --out datasets/preferences
A training YAML of DPO says everything: generator:, reward:, datasets.train, and train.algorithm for --members, --best,
--min-gap and the sampler. options/dpo_from_store_small.yml trains on the result. A build that was stopped or killed
goes on with the same command, from the last batch of samples; a finished one grows with a larger --count.
exit codes: 0 done; 1 done, but images were skipped (named on stderr), or --verify found problems; 2 wrong usage or
refused; 130 interrupted (what is made is kept)"""

_SETTINGS = ('members', 'best', 'min_gap', 'seed', 'steps', 'guidance', 'eta')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='finpercep-build-preferences',
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the set')
    generator_section.add_arguments(parser)
    parser.add_argument(
        '--reward', metavar='YAML', help="in place of the file's: {type: ...}, or a file with `reward:`"
    )
    parser.add_argument('--stage', type=int, choices=(0, 1, 2), help='of a reward that has stages (default: the last)')
    parser.add_argument('--data', metavar='DIR', help="an FGR set in place of the file's datasets.train")
    parser.add_argument('--count', type=positive, metavar='N', help='records (default: one for each item of the data)')
    pairs = parser.add_argument_group("pairs, in place of the file's train.algorithm")
    pairs.add_argument('--members', type=positive, metavar='M', help='samples of each image (default: 8)')
    pairs.add_argument('--best', type=positive, metavar='N', help='the N best are paired with the N worst (default: 2)')
    pairs.add_argument('--min-gap', type=float, metavar='G', help='least difference of reward (default: 0; ties never)')
    pairs.add_argument('--steps', type=positive, metavar='N', help="of the sampler (default: the generator's)")
    pairs.add_argument('--guidance', type=float, metavar='G', help="of the sampler (default: the generator's)")
    pairs.add_argument('--eta', type=float, metavar='E', help="noise of its steps (default: the generator's)")
    parser.add_argument('--seed', type=int, metavar='N', help='(default: 0)')
    parser.add_argument('--no-gt', action='store_true', help='leave gt out of the set')
    parser.add_argument(
        '--batch', type=positive, default=8, metavar='N', help='samples at a time (default: %(default)s)'
    )
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32', help='(default: %(default)s)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N (default: %(default)s)')
    parser.add_argument('--verify', action='store_true', help='check the set afterwards')
    parser.add_argument('--quiet', action='store_true', help='no progress bar, no summary')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Build, verify, tell; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        file = _read_yaml(args.opt) if args.opt else {}
        generator = generator_section.read_section(args.opt, args.set, args.weights)
        generator_section.check(generator)
        skipped = _build(args, file, generator)
        problems = _verify(args.out, args.quiet) if args.verify else 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f'finpercep-build-preferences: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; what is made is stored, run the command again to continue', file=sys.stderr)
        return 130
    return 1 if skipped or problems else 0


def _build(args: argparse.Namespace, file: Mapping[str, Any], generator: dict[str, Any]) -> int:
    """Build; the number of records that could not be made."""
    from tqdm import tqdm

    from finpercep_plugin.config import parse
    from finpercep_plugin.data.preference_builder import PreferenceBuild, PreferenceBuilder
    from finpercep_plugin.data.preference_sources import build_data, build_reward, identity
    from finpercep_plugin.models.precision import cast_frozen
    from finpercep_plugin.ranks import Ranks

    device = Ranks().device(args.device)
    settings = parse(PreferenceBuild, {**_settings(args, file), 'gt': not args.no_gt})
    section, reward_section = _data_section(args.data, file), _reward_section(args.reward, file)
    data = build_data(section)
    reward, stage = build_reward(reward_section, args.stage, device)
    network = generator_section.load(generator)
    bf16 = args.precision == 'bf16'
    if bf16:
        cast_frozen(network)
    options = identity(generator, reward_section, stage, section, args.precision)
    builder = PreferenceBuilder(network.to(device), reward, data, settings, device, args.batch, bf16)
    with tqdm(unit='sample', desc='sampling', disable=args.quiet) as bar:

        def tell(done: int, wanted: int) -> None:
            bar.total = wanted
            if not bar.n and done:
                bar.initial = done
            bar.update(done - bar.n)

        report = builder.build(args.out, args.count, options, tell)
    for key, reason in report.skipped:
        print(f'skipped {key}: {reason}', file=sys.stderr)
    if not args.quiet:
        more = f'{report.tied} records are ties' + (f', {len(report.skipped)} skipped' if report.skipped else '')
        print(f'{report.pairs} pairs in {report.count} records in {args.out}; {report.made} samples made now; {more}')
    return len(report.skipped)


def _settings(args: argparse.Namespace, file: Mapping[str, Any]) -> dict[str, Any]:
    """Of the command line, else of train.algorithm."""
    algorithm = (file.get('train') or {}).get('algorithm') or {}
    given = {name: algorithm[name] for name in _SETTINGS if name in algorithm}
    return given | {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}


def _data_section(data: str | None, file: Mapping[str, Any]) -> dict[str, Any]:
    section = (file.get('datasets') or {}).get('train') or {}
    if data is not None:
        return {'type': 'FinPercepFGRDataset', 'dataroot': data}
    if not section.get('type'):
        raise ValueError('no data: give --data, or -opt with datasets.train')
    return dict(section)


def _reward_section(reward: str | None, file: Mapping[str, Any]) -> dict[str, Any]:
    import yaml

    if reward is not None and Path(reward).suffix in ('.yml', '.yaml'):
        section = _read_yaml(reward).get('reward')
    else:
        section = file.get('reward') if reward is None else yaml.safe_load(reward)
    if not isinstance(section, Mapping):
        raise ValueError(f'no reward: give --reward "{{type: ...}}", or -opt with `reward:`; got {section!r}')
    return dict(section)


def _read_yaml(path: str) -> dict[str, Any]:
    from finpercep_plugin.config import check_file
    from finpercep_plugin.plain_yaml import read_yaml

    try:
        content = read_yaml(check_file(path, path, 'the YAML file').read_text(encoding='utf-8'), f'{path}:')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not YAML: {error}') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected keys and values, got {type(content).__name__}')
    return content


def _verify(out: str, quiet: bool, shown: int = 20) -> int:
    """Check; the number of problems."""
    from finpercep_plugin.data.preference_verify import verify

    problems = verify(out)
    for problem in problems[:shown]:
        print(problem, file=sys.stderr)
    if not quiet:
        print(f'{out}: {len(problems)} problems' if problems else f'{out}: sound')
    return len(problems)


if __name__ == '__main__':
    sys.exit(main())
