"""rm_size: parameters of FinPercep-RM at each stage, and the time and memory of a forward and backward pass, as a Markdown table.

For the figures in docs/measured.md: tools/rm_size.py
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time

__all__ = ['main']


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='rm_size', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--backbone', default='ViT-L-14-quickgelu', help='open_clip ViT, or small (default: ViT-L-14-quickgelu)'
    )
    parser.add_argument(
        '--sizes', type=int, nargs='+', default=[224, 512], metavar='PX', help='image sides (default: 224 512)'
    )
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args(argv)
    import torch

    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

    print(
        '| stage | parameters | trained | ' + ' | '.join(f'{s} px forward / + backward (s)' for s in args.sizes) + ' |'
    )
    print('| --- ' * (3 + len(args.sizes)) + '|')
    torch.manual_seed(0)
    try:
        rm = FinPercepRM(stage=0, backbone=args.backbone)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for stage in range(3):
        if stage:
            rm.grow()
        rm.to(args.device)
        count = sum(p.numel() for p in rm.parameters())
        trained = sum(p.numel() for p in rm.parameters() if p.requires_grad)
        cells = []
        for size in args.sizes:
            image = torch.rand(1, 3, size, size, device=args.device, requires_grad=True)
            began = time.perf_counter()
            score, degradation = rm(image)
            forward = time.perf_counter() - began
            (score.sum() + degradation.sum()).backward()
            whole = time.perf_counter() - began
            assert degradation.shape == (1, 1, size, size) and torch.isfinite(image.grad).all() and image.grad.any()
            cells.append(f'{forward:.2f} / {whole:.2f}')
        print(f'| RM_{stage} | {count / 1e6:.1f} M | {trained / 1e6:.2f} M | ' + ' | '.join(cells) + ' |', flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f'\nbatch 1, {args.device}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, peak memory {peak:.1f} GiB'
    )
    return 0
