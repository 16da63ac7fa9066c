"""rm_size: parameters of FinPercep-RM at each stage, time of a forward and backward pass, and what growth changes, as Markdown tables.

For the figures in docs/measured.md: tools/rm_size.py
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from typing import Any

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
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
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the tables; returns the exit code: 0 done, 2 wrong usage."""
    args = _parser().parse_args(argv)
    import torch

    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

    torch.manual_seed(0)
    try:
        rm = FinPercepRM(stage=0, backbone=args.backbone)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    growth = []
    print(
        '| stage | parameters | trained | '
        + ' | '.join(f'{s} px: forward / with backward (s)' for s in args.sizes)
        + ' |'
    )
    print('| --- ' * (3 + len(args.sizes)) + '|')
    for stage in range(3):
        if stage:
            growth.append(_grow(rm.to(args.device), args.sizes[0]))
        rm.to(args.device)
        count = sum(p.numel() for p in rm.parameters())
        trained = sum(p.numel() for p in rm.parameters() if p.requires_grad)
        cells = ' | '.join(_pass(rm, size, args.device) for size in args.sizes)
        print(f'| RM_{stage} | {count / 1e6:.1f} M | {trained / 1e6:.2f} M | {cells} |', flush=True)
    print('\n| growth | largest change of the score | largest change of the map | gradient norm of the new branch |')
    print('| --- | --- | --- | --- |')
    for stage, (score, degradation, norm) in enumerate(growth):
        print(f'| {stage} -> {stage + 1} | {score:.1e} | {degradation if stage else "(none before)"} | {norm:.2e} |')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    where = f'{args.device}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}'
    print(f'\nbatch 1, seed 0, {where}, peak memory {peak:.1f} GiB')
    return 0


def _pass(rm: Any, size: int, device: str) -> str:
    """Seconds of a forward pass and of a forward and backward pass, which must give a finite gradient."""
    import torch

    image = torch.rand(1, 3, size, size, device=device, requires_grad=True)
    began = time.perf_counter()
    score, degradation = rm(image)
    forward = time.perf_counter() - began
    (score.sum() + degradation.sum()).backward()
    whole = time.perf_counter() - began
    assert degradation.shape == (1, 1, size, size) and torch.isfinite(image.grad).all() and image.grad.any()
    return f'{forward:.2f} / {whole:.2f}'


def _grow(rm: Any, size: int) -> tuple[float, str, float]:
    """Grow a model whose trained tensors were moved first, as training moves them; largest changes, first gradient."""
    import torch

    image = torch.rand(1, 3, size, size, device=next(rm.parameters()).device)
    with torch.no_grad():
        for p in rm.parameters():
            if p.requires_grad:
                p += 0.02 * torch.randn_like(p)
        score, degradation = rm(image)
    before = {name for name, _ in rm.named_parameters()}
    rm.grow()
    now, now_map = rm(image)
    (now.sum() + now_map.mean()).backward()
    new = [p.grad for name, p in rm.named_parameters() if name not in before and p.grad is not None]
    norm = torch.stack([g.norm() for g in new]).norm().item()
    rm.zero_grad()
    return (now - score).abs().max().item(), f'{(now_map - degradation).abs().max().item():.1e}', norm
