"""finpercep-export: the written generator is the loaded one, LoRA merged in the original layout."""

from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.cli import export_generator  # noqa: E402
from finpercep_plugin.generators import lora  # noqa: E402
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion  # noqa: E402
from finpercep_plugin.rollout import sample_images  # noqa: E402

OPTIONS = {'network': {'shuffle': 2, 'channels': [16], 'layers': 1, 'norm_groups': 4}, 'scale': 2, 'steps': 3}
YAML = """
name: x
generator:
  type: TinyDiffusion
  network: {shuffle: 2, channels: [16], layers: 1, norm_groups: 4}
  scale: 2
  steps: 3
  weights: base.pth
  train: lora
"""


def build(*files):
    generator = TinyDiffusion(**OPTIONS)
    for file in files:
        generator.load(file)
    return generator.eval()


def picture(generator):
    lq = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return sample_images(generator, lq, [0], 0, 'test')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a YAML file, base.pth, and two files of trained tensors: lora.pth and up.pth; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.yml').write_text(YAML)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = TinyDiffusion(**OPTIONS)
        torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    generator.save('base.pth')
    for name, choice in (('lora', 'lora'), ('up', ['unet.up_blocks.*'])):
        generator = build('base.pth')
        with torch.no_grad():
            for value in generator.trainable(choice, rank=2, alpha=4.0).values():
                value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        generator.save(f'{name}.pth', layout='trained')
    return tmp_path


def run(*arguments):
    return export_generator.main(['-opt', 'x.yml', *arguments])


@pytest.mark.parametrize('trained', ['lora', 'up'])
@pytest.mark.parametrize('layout', ['original', 'own'])
def test_what_is_written_gives_the_same_pictures(folder, capsys, trained, layout):
    code = run('--weights', 'base.pth', f'{trained}.pth', '--layout', layout, '--out', 'new/net.pth')
    assert code == 0 and capsys.readouterr().out.startswith('new/net.pth: ')
    expected, base = build('base.pth', f'{trained}.pth'), build('base.pth')
    found = TinyDiffusion.from_file('new/net.pth').eval()
    assert (found.part.lora is not None) == (trained == 'lora' and layout == 'own')
    torch.testing.assert_close(picture(found), picture(expected), rtol=0, atol=1e-5)
    assert (picture(found) - picture(base)).abs().max() > 1e-3


def test_lora_is_merged_into_the_weights_it_adapts(folder):
    assert run('--weights', 'base.pth', 'lora.pth', '--layout', 'original', '--out', 'net.pth') == 0
    base, new = (torch.load(f, weights_only=True)['params'] for f in ('base.pth', 'net.pth'))
    lora = torch.load('lora.pth', weights_only=True)['params']
    assert list(new) == list(base) or set(new) == set(base)
    name = 'network.unet.conv_in'
    a, b = (lora[f'{name}.lora_{x}.default.weight'] for x in 'AB')
    delta = 2.0 * torch.einsum('or,rihw->oihw', b[:, :, 0, 0], a)  # alpha / rank
    torch.testing.assert_close(new[f'{name}.weight'], base[f'{name}.weight'] + delta)
    assert torch.equal(new[f'{name}.bias'], base[f'{name}.bias'])


def test_the_weights_of_the_file_and_overrides(folder):
    assert run('--layout', 'own', '--out', 'net.pth', '--set', 'steps=2', '--set', 'temperature=0.5') == 0
    data = torch.load('net.pth', weights_only=True)
    assert data['arch']['steps'] == 2 and data['arch']['temperature'] == 0.5
    assert all(torch.equal(v, data['params'][k]) for k, v in build('base.pth').state_dict().items())


def test_what_is_there_is_kept_unless_told(folder, capsys):
    (folder / 'net.pth').write_text('mine')
    assert run('--layout', 'own', '--out', 'net.pth') == 2
    assert 'is there already' in capsys.readouterr().err and (folder / 'net.pth').read_text() == 'mine'
    assert run('--layout', 'own', '--out', 'net.pth', '--overwrite') == 0 and build('net.pth')
    before = (folder / 'base.pth').read_bytes()
    assert run('--layout', 'own', '--out', 'base.pth', '--overwrite') == 2
    assert 'one of the weights' in capsys.readouterr().err and (folder / 'base.pth').read_bytes() == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--out', 'net.ckpt'], 'expected a name that ends in .pth'),
        (['--out', 'folder'], 'expected a name that ends in .pth'),
        (['--out', 'net.pth', '--weights', 'up.pth'], 'holds fine-tuned tensors only'),
        (['--out', 'net.pth', '--weights', 'gone.pth'], 'generator weights not found at'),
        (['--out', 'net.pth', '--set', 'network.layers=2'], 'does not fit the model'),
        (['--out', 'net.pth', '--set', 'type=Tiny'], "no generator named 'Tiny'"),
    ],
)
@pytest.mark.parametrize('layout', ['original', 'own'])
def test_errors_exit_2_and_write_nothing(folder, capsys, arguments, message, layout):
    before = sorted(folder.iterdir())
    assert run('--layout', layout, *arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_the_layout_trained_is_not_offered(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        run('--layout', 'trained', '--out', 'net.pth')
    assert caught.value.code == 2 and 'invalid choice' in capsys.readouterr().err


# ------------------------------------------------------------------ released layouts


def released(folder, kind, paths, choice):
    """A YAML file of a released generator, and tensors trained on it, of what `choice` means."""
    from finpercep_plugin.config import build as build_generator
    from finpercep_plugin.registry import GENERATORS

    (folder / 'x.yml').write_text(yaml.safe_dump({'generator': {'type': kind, **paths}}))
    options = {key: value for key, value in paths.items() if key != 'weights'}
    generator = build_generator(GENERATORS, {'type': kind, **options}, '$')
    generator.load(paths['weights'])
    with torch.no_grad():
        for value in generator.trainable(choice, rank=2, alpha=2.0, reference=False).values():
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    generator.save('trained.pth', layout='trained')
    return generator, lambda: build_generator(GENERATORS, {'type': kind, **options}, '$')


def test_a_folder_is_written_as_a_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip('timm')
    from finpercep_plugin.cli.tiny.seesr import seesr

    monkeypatch.chdir(tmp_path)
    paths = seesr(tmp_path)
    trained, make = released(tmp_path, 'SeeSR', paths, 'lora')
    assert run('--weights', paths['weights'], 'trained.pth', '--layout', 'original', '--out', 'tuned') == 0
    names = sorted(p.relative_to(tmp_path / 'tuned').as_posix() for p in (tmp_path / 'tuned').rglob('*.*'))
    assert names == sorted(p.relative_to(paths['weights']).as_posix() for p in Path(paths['weights']).rglob('*.*'))
    new, before = make(), make()
    new.load('tuned')
    before.load(paths['weights'])
    expected, plain = lora.merged_state(trained.network), before.network.state_dict()
    changed = [name for name, value in new.network.state_dict().items() if not torch.equal(value, plain[name])]
    assert len(changed) == len(lora.weight_deltas(trained.network)) > 0
    for name, value in new.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    assert run('--weights', paths['weights'], 'trained.pth', '--layout', 'own', '--out', 'own.pth') == 0
    capsys.readouterr()
    assert run('--weights', 'own.pth', '--layout', 'original', '--out', 'again') == 2
    assert 'rewrites the released checkpoint' in capsys.readouterr().err


def test_trained_tensors_that_a_layout_has_no_place_for_are_not_dropped(tmp_path, monkeypatch, capsys):
    pytest.importorskip('timm')
    from finpercep_plugin.cli.tiny.osediff import osediff

    monkeypatch.chdir(tmp_path)
    paths = {key: str(value) for key, value in osediff(tmp_path).items()}
    released(tmp_path, 'OSEDiff', paths, 'all')
    arguments = ('--weights', paths['weights'], 'trained.pth', '--layout')
    assert run(*arguments, 'original', '--out', 'net.pkl') == 2
    assert 'other tensors were trained' in capsys.readouterr().err and not (tmp_path / 'net.pkl').exists()
    assert run(*arguments, 'original', '--out', 'net.pth') == 2 and 'ends in .pkl' in capsys.readouterr().err
    assert run(*arguments, 'own', '--out', 'net.pth') == 0
