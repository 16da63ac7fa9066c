"""A latent generator of a few hundred parameters, with a released checkpoint of its own in two layouts; the released
generators on tiny random checkpoints.
"""

from __future__ import annotations

import copy
import functools
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finpercep_plugin.registry import GENERATORS
from finpercep_plugin.rollout import step_x0

CHANNELS, WIDTH, TEXT = 4, 6, 5


class ToyNetwork(nn.Module):
    """`unet` is frozen in training as released, `control` is what the release added; sees no further than `kernel`."""

    def __init__(self, kernel: int):
        super().__init__()
        options = {'kernel_size': kernel, 'padding': kernel // 2}
        self.unet = nn.ModuleDict(
            {
                'conv_in': nn.Conv2d(CHANNELS, WIDTH, **options),
                'time': nn.Linear(1, WIDTH),
                'out': nn.Conv2d(WIDTH, CHANNELS, **options),
            }
        )
        self.control = nn.ModuleDict({'conv': nn.Conv2d(CHANNELS, WIDTH, **options), 'text': nn.Linear(TEXT, WIDTH)})

    def forward(self, x, t, latent, text):
        across = self.control['text'](text) + self.unet['time'](t[:, None] / 1000)
        hidden = self.unet['conv_in'](x) + self.control['conv'](latent) + across[..., None, None]
        return self.unet['out'](F.silu(hidden))


def embed(text: str) -> torch.Tensor:
    codes = torch.tensor([float(ord(c)) for c in text.ljust(TEXT)[:TEXT]])
    return codes / 100 - 1


def _kinds() -> dict:
    from diffusers import AutoencoderKL

    from finpercep_plugin.diffusion.schedule import DiscreteSchedule, alphas_cumprod
    from finpercep_plugin.generators.condition import Condition
    from finpercep_plugin.generators.latent_generator import LatentGenerator
    from finpercep_plugin.generators.pretrained import load_part
    from finpercep_plugin.generators.released import Released, find_folder, read_file, read_folder

    class Toy(LatentGenerator):
        """The stock VAE at a tiny size, and `ToyNetwork`."""

        released_names = ('control.*',)

        def __init__(
            self,
            base: str,
            prompt: str = 'good',
            steps: int = 4,
            guidance: float = 2.0,
            eta: float = 0.0,
            tile: int = 0,
            tile_overlap: int = 2,
            color_fix: str = 'none',
            vae_tile: int = 0,
            vae_tile_overlap: int = 2,
            checkpointing: bool = True,
            cache: int = 8,
        ):
            super().__init__(DiscreteSchedule(alphas_cumprod('scaled_linear')), locals())
            self.prompt, self.looks = prompt, 0

        def read_released(self, path):
            if Path(path).is_file():  # one file, in which the linear layer is a 1 x 1 convolution
                state = read_file(path, 'Toy')['state_dict']
                own = {key.removeprefix('model.'): value for key, value in state.items()}
                own['control.text.weight'] = own['control.text.weight'].flatten(1)
                config = {'kernel': own['unet.out.weight'].shape[-1]}
                return Released(Path(path), config, own, {k: ('', ('state_dict', f'model.{k}')) for k in own})
            released = Released(find_folder(path, 'Toy', ['unet', 'control']))
            for part in ('unet', 'control'):
                config, state, source = read_folder(released.path, part, 'Toy')
                released.config.update(config)
                released.state.update({f'{part}.{name}': value for name, value in state.items()})
                released.source.update({f'{part}.{name}': place for name, place in source.items()})
            return released

        def build_network(self, config):
            return ToyNetwork(config['kernel'])

        def load_frozen(self):
            self.vae = load_part(AutoencoderKL, self.arch['base'], 'vae', 'Toy')

        def condition(self, lq, prompt=None):
            self.loaded()
            texts, tensors = self.per_lq(lq, prompt, self._look)
            tensors['negative_text'] = embed('bad').repeat(len(lq), 1)
            return Condition(lq, self.upscaled(lq), texts, tensors)

        def _look(self, lq, prompt):
            self.looks += 1
            text = self.prompt if prompt is None else prompt[0]
            return [text], {'latent': self.posterior(self.padded(self.upscaled(lq)))[0], 'text': embed(text)[None]}

        def run(self, x_t, t, cond):
            return self.loaded()(x_t, t, cond.tensors['latent'], cond.tensors['text'])

    class Pointwise(Toy):
        """A VAE that looks at one latent cell only: means of 8 x 8 pixels, and pixels of one colour."""

        def moments(self, image):
            mean = F.avg_pool2d(image, 8)
            mean = torch.cat([mean, mean.mean(1, keepdim=True)], dim=1)
            return torch.cat([mean, torch.full_like(mean, -2.0)], dim=1)

        def decoded(self, z, cond):
            return F.interpolate(z[:, :3], scale_factor=8, mode='nearest')

    return {'Toy': Toy, 'Pointwise': Pointwise}


def _write(root: Path, kernel: int) -> dict:
    """The released network as a folder, `unet` in float16, and as one file."""
    from finpercep_plugin.cli.tiny.sd2 import filled, write_part

    network = filled(lambda: ToyNetwork(kernel), seed=kernel)
    halves = {name: value.half() for name, value in network.unet.state_dict().items()}
    folder = root / f'released_{kernel}'
    write_part(folder / 'unet', {'kernel': kernel}, halves)
    write_part(folder / 'control', {'kernel': kernel}, network.control.state_dict())
    state = {f'model.{name}': value for name, value in network.state_dict().items()}
    state |= {f'model.unet.{name}': value for name, value in halves.items()}
    state['model.control.text.weight'] = state['model.control.text.weight'][..., None, None]
    torch.save({'step': 7, 'state_dict': state, 'other': torch.arange(3)}, root / f'released_{kernel}.ckpt')
    return {'folder': folder, 'file': root / f'released_{kernel}.ckpt'}


def nudge(parameters, seed=3):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in parameters.values():
            value.add_(0.1 * torch.randn(value.shape, generator=rng))


def output(generator):
    """predict and decode, float32."""
    rng = torch.Generator().manual_seed(1)
    cond = generator.condition(torch.rand(2, 3, 8, 8, generator=rng))
    x = torch.randn(2, *generator.latent_shape(cond), generator=rng)
    with torch.no_grad():
        return generator.decode(generator.predict(x, 300, cond, 2.0), cond)


@pytest.fixture(scope='session')
def toy(tmp_path_factory):
    """make(kind, kernel=1 or 3, file=False, load=True, **options) -> a generator; `base`, `released`; `nudge`, `output`."""
    pytest.importorskip('diffusers')
    pytest.importorskip('peft')
    from diffusers import AutoencoderKL

    from finpercep_plugin.cli.tiny.sd2 import VAE, filled, write_part

    root = tmp_path_factory.mktemp('toy')
    vae = filled(lambda: AutoencoderKL(**VAE), 0)
    config = {'_class_name': 'AutoencoderKL', **VAE, 'scaling_factor': 0.5, 'shift_factor': 0.25}
    write_part(root / 'base/vae', config, vae.state_dict())
    released = {kernel: _write(root, kernel) for kernel in (1, 3)}
    kinds = _kinds()

    def make(kind='Pointwise', kernel=1, file=False, load=True, **options):
        generator = kinds[kind](**{'base': str(root / 'base'), **options})
        if load:
            generator.load(released[kernel]['file' if file else 'folder'])
        return generator

    parts = {'base': root / 'base', 'released': released, 'nudge': nudge, 'output': output}
    return SimpleNamespace(make=make, **parts, **kinds)


# Options of `Tiny.make`; True stands for the file of that option.
USUAL = {
    'SeeSR': {'steps': 4, **dict.fromkeys(('base', 'ram', 'dape', 'tags', 'thresholds'), True)},
    'StableSR': {'steps': 4},
    'DiffBIR': {'steps': 4, 'base': True, 'cleaner': True},
    'DiT4SR': {'steps': 4, 'base': True, 't5': False},
    'OSEDiff': {'base': True, 'prompt': 'a sea', 'checkpointing': False},
}


class Tiny:
    """A released generator on a tiny random checkpoint in its released layout.

    Attributes:
        files: {'weights' and options: path}.
    """

    def __init__(self, name, folder):
        writer = getattr(importlib.import_module(f'finpercep_plugin.cli.tiny.{name.lower()}'), name.lower())
        self.name, self.kind, self.files = name, GENERATORS.get(name), writer(folder, seed=3)
        self.loaded = {}

    def make(self, weights=None, load=True, **options):
        """With the released weights: a copy of the first of these options, as loading takes longer."""
        given = {**USUAL[self.name], **options}
        given = {key: self.files[key] if value is True and key in self.files else value for key, value in given.items()}
        if load and weights is None:
            if repr(given) not in self.loaded:
                self.loaded[repr(given)] = self.kind(**given)
                self.loaded[repr(given)].load(self.files['weights'])
            return copy.deepcopy(self.loaded[repr(given)])
        generator = self.kind(**given)
        if load:
            generator.load(weights)
        return generator

    def lq(self, batch=2, height=12, width=16, seed=0):
        return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))

    def noise(self, generator, cond, seed=1):
        shape = (len(cond), *generator.latent_shape(cond))
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def loss(self, generator):
        """Of the picture of one step's clean latent."""
        cond = generator.condition(self.lq())
        sr = generator.decode(step_x0(generator, self.noise(generator, cond), 2, cond, guidance=2.0), cond)
        return (sr * torch.linspace(0, 1, sr.shape[-1])).sum()

    def gradients(self, generator):
        """{trained name: of `loss`}."""
        self.loss(generator).backward()
        return {name: value.grad for name, value in generator.network.named_parameters() if value.requires_grad}

    def step(self, generator):
        """One of an optimiser; returns the gradients."""
        gradients = self.gradients(generator)
        torch.optim.Adam([generator.network.get_parameter(name) for name in gradients], lr=1e-2).step()
        return gradients

    def tensors(self, path):
        """{our name: tensor} of a checkpoint in the released layout."""
        if Path(path).is_file():
            released = self.make(load=False).read_released(path)
            return {name: released.state[name] for name in released.source}
        from safetensors.torch import load_file

        files = {file.parent.name: load_file(file) for file in Path(path).glob('*/*.safetensors')}
        return {f'{part}.{name}': value for part, tensors in files.items() for name, value in tensors.items()}


class TinyOSEDiff(Tiny):
    """By default without RAM and without checkpointing."""

    def pictures(self, batch=2, height=10, width=12):
        """lq and gt."""
        gt = torch.rand(batch, 3, 4 * height, 4 * width, generator=torch.Generator().manual_seed(5))
        return F.avg_pool2d(gt, 4), gt

    def loss(self, generator):
        """Through encoder, UNet and decode, and the training loss."""
        lq, gt = self.pictures(1, 20, 24)  # 2 x 2 cells in the UNet's middle, so its attention matters
        cond = generator.condition(lq)
        noise = self.noise(generator, cond)
        sr = generator.decode(step_x0(generator, generator.start(cond, noise), 0, cond), cond)
        t = generator.draw_t(torch.Generator()).reshape(1)
        return (sr - gt).square().mean() + generator.pretrain_loss(gt, cond, noise, t).mean()

    def tensors(self, path):
        data = torch.load(path, weights_only=True)
        return {f'{part}.{k}': v for part in ('unet', 'vae') for k, v in data[f'state_dict_{part}'].items()}


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """tiny(name) -> the `Tiny` of a released generator."""
    pytest.importorskip('diffusers')
    pytest.importorskip('peft')
    return functools.cache(
        lambda name: (TinyOSEDiff if name == 'OSEDiff' else Tiny)(name, tmp_path_factory.mktemp(name))
    )


@pytest.fixture(scope='module')
def made(request, tiny):
    """The `Tiny` of the generator that the module's NAME names."""
    return tiny(request.module.NAME)
