"""The full-size FinPercep-RM against its bare vision tower: time of a pass, and memory of a pass with gradient to the picture."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from benchmarks.common import MIB, Result, Setup, figure, in_turn, parameter_bytes, peak_memory

TITLE = 'FinPercep-RM against its vision tower'
WORDS = """RM_2 on ViT-L/14 (random weights), one picture of 224 px, against `open_clip`'s bare vision tower of the same weights. Memory is that of the reward's use: frozen weights, gradient to
the picture, forward and backward. *adapters*: as the paper has it; S_0 is part of the score, and the encoder without its adapters a second pass. *ladder*: the adapters lie beside the blocks, and one pass gives both."""

PEER = 'bare open_clip tower'
FORMS = {
    'ladder': {'encoder': 'ladder', 'score_head': 'residual'},
    'adapters': {'encoder': 'adapters', 'score_head': 'residual'},
    'adapters, score_head: paper': {'encoder': 'adapters', 'score_head': 'paper'},
}


def run(setup: Setup) -> Result:
    """Figures of `FORMS`."""
    rm, side = _model(setup)
    tower = rm.encoder.visual
    image = torch.rand(
        1, 3, side, side, device=setup.device, generator=torch.Generator(setup.device).manual_seed(setup.seed)
    )
    forward = {PEER: _forward(tower, image), **{name: _forward(_as(rm, form), image) for name, form in FORMS.items()}}
    both = {PEER: _both(tower, image), **{name: _both(_as(rm, form), image) for name, form in FORMS.items()}}
    seconds = in_turn(forward, setup.rounds, setup.device)
    whole = in_turn(both, max(1, setup.rounds // 2), setup.device, warm=False)
    peaks = {name: peak_memory(work, setup.device) / MIB for name, work in both.items()}
    weights = {name: parameter_bytes(tower if name == PEER else rm) / MIB for name in both}
    figures = []
    for name in FORMS:
        held, bare = weights[name] + peaks[name], weights[PEER] + peaks[PEER]
        figures += [
            figure(f'{name}: forward', PEER, seconds[name], seconds[PEER], goal='<= 1.10'),
            figure(f'{name}: forward and backward', PEER, whole[name], whole[PEER]),
            figure(f'{name}: peak memory with backward, weights included', PEER, [held], [bare], 'MiB', '<= 1.15'),
            figure(f'{name}: the same without weights', PEER, [peaks[name]], [peaks[PEER]], 'MiB'),
        ]
    again = _checkpointed(rm, image, setup)
    figures.append(figure('ladder, recomputed blocks: peak without weights', PEER, [again / MIB], [peaks[PEER]], 'MiB'))
    return Result(figures, sizes=f'{sum(p.numel() for p in rm.parameters()) / 1e6:.1f} M parameters, {side} px')


def _model(setup: Setup) -> tuple[Any, int]:
    from finpercep_plugin.archs.clip_encoder import SmallViT
    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

    torch.manual_seed(setup.seed)
    if setup.quick:
        vit = SmallViT(size=32, patch=8, width=32, depth=4, heads=2, stem=0)
        rm, side = FinPercepRM(backbone='small', vit=vit, decoder_width=16, adapter_width=8), 32
    else:
        rm, side = FinPercepRM(), 224
    return rm.requires_grad_(False).eval().to(setup.device), side


def _as(rm: Any, form: dict[str, str]) -> Callable[[Tensor], Any]:
    """The model as if built with these options: they have the same tensors and differ in what is called."""

    def call(image: Tensor) -> Any:
        rm.arch.update(form)
        rm.encoder.ladder = form['encoder'] == 'ladder'
        return rm(image)

    return call


def _forward(model: Callable[[Tensor], Any], image: Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def work() -> None:
        model(image)

    return work


def _both(model: nn.Module | Callable[[Tensor], Any], image: Tensor) -> Callable[[], None]:
    def work() -> None:
        picture = image.clone().requires_grad_()
        out = model(picture)
        loss = out.sum() if isinstance(out, Tensor) else out[0].sum() + out[1].mean()
        loss.backward()

    return work


def _checkpointed(rm: Any, image: Tensor, setup: Setup) -> int:
    rm.encoder.checkpointing = True
    try:
        return peak_memory(_both(_as(rm, FORMS['ladder']), image), setup.device)
    finally:
        rm.encoder.checkpointing = False
