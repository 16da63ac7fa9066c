"""A latent generator of a few hundred parameters, with a released checkpoint of its own in two layouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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


@pytest.fixture(scope='session')
def toy(tmp_path_factory):
    """make(kind, kernel=1 or 3, file=False, load=True, **options) -> a generator; `kinds`, `base`, `released`."""
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

    return SimpleNamespace(make=make, base=root / 'base', released=released, **kinds)
