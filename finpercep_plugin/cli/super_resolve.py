"""finpercep-super-resolve: low-quality images -> super-resolved PNGs, by any generator and checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from finpercep_plugin import generator_section
from finpercep_plugin.cli.arguments import natural, positive
from finpercep_plugin.registry import GENERATORS

if TYPE_CHECKING:
    from finpercep_plugin.ranks import Ranks
    from finpercep_plugin.run_folder import RunFolder
    from finpercep_plugin.upscaling import Job

__all__ = ['main']

_EPILOG = """example: finpercep-super-resolve photos --out sr -opt options/ccl_refl_seesr.yml --steps 20
--weights checkpoints/seesr experiments/ccl_refl_seesr/models/net_g_latest.pth
A run that was stopped or killed goes on when the same command is given again: what is there, whole, and made with the
same settings of the same image and prompt, is not made again. Several processes share the images under torchrun.
exit codes: 0 all images made, now or before; 1 some were skipped (named on stderr and in OUT/failures*.json); 2 wrong
usage, missing files, no images, or OUT holds images of other settings; 130 interrupted (what is made is kept)"""

_OPTIONS = ('steps', 'guidance', 'tile', 'tile_overlap', 'vae_tile', 'color_fix')  # of the generator, by the same names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='finpercep-super-resolve',
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='folders (searched recursively) or image files')
    parser.add_argument(
        '--out', required=True, type=Path, metavar='DIR', help='folder of the PNGs, named as the images are'
    )
    generator_section.add_arguments(parser)
    sampler = parser.add_argument_group("options of the generator, in place of the section's")
    sampler.add_argument('--steps', type=positive, metavar='N', help='of the sampler')
    sampler.add_argument('--guidance', type=float, metavar='G', help='classifier-free guidance; 1 for none')
    sampler.add_argument('--tile', type=natural, metavar='N', help='side of latent tiles, in latent cells; 0 for none')
    sampler.add_argument('--tile-overlap', type=natural, metavar='N', help='of these')
    sampler.add_argument('--vae-tile', type=natural, metavar='N', help="side of the VAE's tiles; 0 for none")
    sampler.add_argument('--color-fix', choices=('adain', 'wavelet', 'none'), help='what gives sr the colours of lq')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the noise (default: %(default)s)')
    texts = parser.add_argument_group('prompts')
    texts.add_argument('--prompt', metavar='TEXT', help='of every image that --prompts has none for')
    texts.add_argument(
        '--prompts', metavar='FILE', help='.json {name: text}, or lines "name: text"; names without suffix'
    )
    parser.add_argument(
        '--batch', type=positive, default=1, metavar='N', help='images of equal size at once (default: %(default)s)'
    )
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32', help='(default: %(default)s)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N (default: %(default)s)')
    parser.add_argument('--limit', type=positive, metavar='N', help='only the first N images')
    parser.add_argument('--max-pixels', type=positive, metavar='N', help='skip images of more pixels than that')
    parser.add_argument(
        '--min-side',
        type=natural,
        metavar='N',
        help='enlarge inputs with a shorter side below N first, and reduce the result; 0 for never '
        "(default: the generator's: 128 for released ones, as their own scripts do)",
    )
    parser.add_argument('--overwrite', action='store_true', help='make all images again, whatever OUT holds')
    parser.add_argument('--quiet', action='store_true', help='no progress bar, no summary')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, make, say what was skipped; returns the exit code."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.ranks import Ranks
    from finpercep_plugin.upscaling import pending

    try:
        ranks = Ranks.of_environment()
        device = ranks.device(args.device)
        section = {name: getattr(args, name) for name in _OPTIONS}
        section = generator_section.read_section(args.opt, args.set, args.weights, **section)
        generator_section.check(section)
        if args.min_side is None:
            args.min_side = getattr(GENERATORS.get(section['type']), 'min_side', 0)
        jobs, folder = _prepare(args, section)
        mine = ranks.share(jobs)
        todo = pending(mine, folder, args.overwrite)
        upscaler = _upscaler(args, section, folder, device) if todo else None
        folder.start()
        return _make(upscaler, todo, len(mine), ranks, folder, args)
    except KeyboardInterrupt:
        return 130
    except (OSError, ImportError, KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        print(f'finpercep-super-resolve: {error or type(error).__name__}', file=sys.stderr)
        return 2


def _prepare(args: argparse.Namespace, section: dict[str, Any]) -> tuple[list[Job], RunFolder]:
    """What is to be made, and where.

    Raises:
        ValueError, OSError: it cannot be: no images, or a folder of other settings.
    """
    from finpercep_plugin.images import list_images
    from finpercep_plugin.prompts import read_prompts
    from finpercep_plugin.scoring.sources import common_root
    from finpercep_plugin.upscaling import plan, run_folder

    paths = list_images(args.inputs, skip=[args.out])
    if not paths:
        raise ValueError(f'no images in {", ".join(args.inputs)}')
    prompts = read_prompts(args.prompts) if args.prompts else None
    jobs = plan(paths, common_root(args.inputs), args.out, args.prompt, prompts)[: args.limit]
    folder = run_folder(args.out, section, args.seed, args.precision, args.prompt, args.min_side)
    if not args.overwrite:
        try:
            folder.check([args.out / job.name for job in jobs])
        except ValueError as error:
            raise ValueError(f'{error}\n--overwrite makes all again; another --out keeps both') from error
    return jobs, folder


def _upscaler(args: argparse.Namespace, section: dict[str, Any], folder: RunFolder, device: Any) -> Any:
    from finpercep_plugin.upscaling import Upscaler

    generator = generator_section.load(section)
    sizes = {'max_pixels': args.max_pixels, 'min_side': args.min_side}
    return Upscaler(generator, folder, device, args.batch, args.seed, args.precision, **sizes)


def _make(
    upscaler: Any, todo: Sequence[Any], total: int, ranks: Ranks, folder: RunFolder, args: argparse.Namespace
) -> int:
    """Go through the jobs of this process; returns the exit code."""
    from tqdm import tqdm

    failures: dict[str, str] = {}
    before, made = total - len(todo), 0
    quiet = args.quiet or ranks.rank > 0
    with tqdm(total=total, initial=before, unit='image', disable=quiet, desc='super-resolving') as bar:
        try:
            for result in upscaler.results(todo) if todo else ():
                bar.update()
                made += not result.error
                if result.error:
                    failures[str(result.job.source)] = result.error
                    bar.write(f'skipped {result.job.source}: {result.error}', file=sys.stderr)
        except KeyboardInterrupt:
            bar.write(f'interrupted after {made} images; the same command goes on from here', file=sys.stderr)
            return 130
        finally:
            _list_failures(folder, failures, ranks)
    _tell([made, before, total], failures, ranks, args)
    return 1 if failures else 0


def _list_failures(folder: RunFolder, failures: dict[str, str], ranks: Ranks) -> None:
    """One file a process; those of earlier runs with another number of processes go."""
    names = ['failures.json'] if ranks.world == 1 else [f'failures_{i}of{ranks.world}.json' for i in range(ranks.world)]
    if ranks.rank == 0:
        for file in folder.path.glob('failures*.json'):
            if file.name not in names:
                file.unlink(missing_ok=True)
    folder.write_failures(names[ranks.rank], failures)


def _tell(counts: list[int], failures: dict[str, str], ranks: Ranks, args: argparse.Namespace) -> None:
    """The totals, once all processes are done; each one's own where they cannot meet."""
    shares = ranks.gather(json.dumps(counts))
    who = '' if shares else f'rank {ranks.rank} of {ranks.world}: '
    if not args.quiet and (shares is None or ranks.rank == 0):
        made, before, total = (sum(c) for c in zip(*map(json.loads, shares or [json.dumps(counts)])))
        print(f'{who}{made + before} of {total} images are in {args.out}: {made} made now, {before} before', flush=True)
    if failures:
        first, more = list(failures)[:5], len(failures) - 5
        rest = f' and {more} more' if more > 0 else ''
        print(f'{who}{len(failures)} skipped: {", ".join(first)}{rest}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())
