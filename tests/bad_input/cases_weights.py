"""Weights that are none."""

import os
from pathlib import Path

import torch

from finpercep_plugin.cli import score
from tests.bad_input.tools import Seen, run
from tests.bad_input.world import BUILD, SCORE, World, build_with, case, put


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def score_with(w: World, rm: Path) -> Seen:
    return run(score.main, w.photos, '--rm', rm, '--out', w.folder / 's.csv', '--device', 'cpu', '--quiet')


@case('weights that are not there', SCORE, 2, 'no reward model at')
def _(w):
    return score_with(w, w.folder / 'gone.pth')


@case('text as weights', SCORE, 2, 'is not a FinPercep-RM file')
def _(w):
    return score_with(w, put(w.folder / 'rm.pth', 'no weights'))


@case('truncated weights', SCORE, 2, 'is not a FinPercep-RM file')
def _(w):
    return score_with(w, put(w.folder / 'rm.pth', w.rm.read_bytes()[:20000]))


@case('weights of another network', SCORE, 2, 'is not a FinPercep-RM file')
def _(w):
    torch.save({'params': {'conv.weight': torch.zeros(3)}}, w.folder / 'rm.pth')
    return score_with(w, w.folder / 'rm.pth')


@case('pickle that would run code', SCORE, 2, 'is not a FinPercep-RM file')
def _(w):
    torch.save({'params': Payload(w.folder / 'made')}, w.folder / 'rm.pth')
    seen = score_with(w, w.folder / 'rm.pth')
    assert not (w.folder / 'made').exists()
    return seen


@case('folder as weights', SCORE, 2, 'no reward model at')
def _(w):
    return score_with(w, w.folder)


def basicsr(w: World, weights: Path) -> Seen:
    network = '{type: SRVGGNetCompact, num_feat: 4, num_conv: 1, upscale: 4}'
    return build_with(w, f'producers: [{{type: basicsr, network: {network}, weights: "{weights}"}}]\n')


@case("producer's weights that are not there", BUILD, 2, 'weights: no such file')
def _(w):
    return basicsr(w, w.folder / 'gone.pth')


@case("producer's pickle that would run code", BUILD, 2, 'cannot be read as tensors and plain values alone')
def _(w):
    torch.save({'params': Payload(w.folder / 'made')}, w.folder / 'net.pth')
    seen = basicsr(w, w.folder / 'net.pth')
    assert not (w.folder / 'made').exists()
    return seen
