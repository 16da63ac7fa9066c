"""finpercep-super-resolve: the pictures are `sample_images`'s, whatever the batch, order, ranks and kills."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin import upscaling  # noqa: E402
from finpercep_plugin.cli import super_resolve  # noqa: E402
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion  # noqa: E402
from finpercep_plugin.images import read_image, write_png  # noqa: E402
from finpercep_plugin.models.panels import picture  # noqa: E402
from finpercep_plugin.rng import key_seed  # noqa: E402
from finpercep_plugin.rollout import sample_images  # noqa: E402

OPTIONS = {'network': {'shuffle': 2, 'channels': [16], 'layers': 1, 'norm_groups': 4}, 'scale': 2, 'steps': 3}
NAMES = ['a.png', 'b.png', 'c.png', 'sub/deep/d.png', 'sub/e.png', 'wide.png']


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Files of two generators."""
    folder, files = tmp_path_factory.mktemp('weights'), []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = TinyDiffusion(**OPTIONS, temperature=1.0)
            torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
        files.append(folder / f'{seed}.pth')
        generator.save(files[-1])
    return files


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in NAMES:
        size = (16, 24, 3) if name == 'wide.png' else (16, 12, 3)
        write_png(tmp_path / 'lq' / name, rng.integers(0, 256, size, dtype=np.uint8))
    return tmp_path / 'lq'


@pytest.fixture
def options(tmp_path, weights):
    """A training YAML: its other sections are not looked at."""
    section = {'type': 'TinyDiffusion', **OPTIONS, 'temperature': 1.0, 'weights': str(weights[0]), 'train': 'lora'}
    file = tmp_path / 'train.yml'
    file.write_text(yaml.safe_dump({'name': 'x', 'model_type': 'FinPercepReFLModel', 'generator': section}))
    return file


@pytest.fixture
def run(photos, options, tmp_path):
    """run('--batch', 2, out='sr') -> exit code."""

    def call(*arguments, out='sr', inputs=(photos,)):
        given = [*inputs, '--out', tmp_path / out, '-opt', options, '--device', 'cpu', '--quiet', *arguments]
        return super_resolve.main([str(a) for a in given])

    return call


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*.png'))}


def pixels(folder):
    return {name: read_image(folder / name).astype(int) for name in files(folder)}


def same(first, second):
    """Equal pictures, but for sums of float32 in another order."""
    assert list(first) == list(second)
    return all(np.abs(first[name] - second[name]).max() <= 1 for name in first)


def test_pictures_are_those_of_sample_images(run, photos, weights, tmp_path):
    assert run('--seed', 7) == 0
    assert list(files(tmp_path / 'sr')) == NAMES
    generator = TinyDiffusion(**OPTIONS, temperature=1.0)
    generator.load(weights[0])
    generator.eval()
    for name in NAMES:
        lq = torch.from_numpy(read_image(photos / name)).permute(2, 0, 1)[None].float().div(255).contiguous()
        sr = sample_images(generator, lq, [key_seed(name)], 7, upscaling.PURPOSE)
        assert np.array_equal(read_image(tmp_path / 'sr' / name), picture(sr[0])), name
    noise = [Image.open(tmp_path / 'sr' / n).size for n in ('a.png', 'wide.png')]
    assert noise == [(24, 32), (48, 32)]
    settings = json.loads((tmp_path / 'sr/run.json').read_text())['settings']
    assert settings['seed'] == 7 and settings['generator']['steps'] == 3 and 'train' not in settings['generator']
    assert settings['generator']['schedule'] == 'linear' and len(settings['weights']) == 1
    assert not [p for p in (tmp_path / 'sr').rglob('*') if p.name.endswith('.part') or 'failures' in p.name]


def test_batch_order_limit_and_selection_do_not_matter(run, photos, tmp_path):
    assert run() == 0
    assert run('--batch', 4, out='four') == 0
    assert same(pixels(tmp_path / 'sr'), pixels(tmp_path / 'four'))
    assert run('--limit', 2, out='two') == 0
    assert files(tmp_path / 'two') == {n: files(tmp_path / 'sr')[n] for n in NAMES[:2]}
    assert run(out='some', inputs=[photos / 'c.png', photos / 'a.png']) == 0
    assert files(tmp_path / 'some') == {n: files(tmp_path / 'sr')[n] for n in ('a.png', 'c.png')}


def test_seed_and_options_of_the_command_line_count(run, weights, tmp_path):
    changes = {'seed': ['--seed', 1], 'steps': ['--steps', 2], 'set': ['--set', 'temperature=0'], 'weights': []}
    assert run(out='base') == 0
    base = files(tmp_path / 'base')
    for name, change in changes.items():
        change = change or ['--weights', weights[1]]
        assert run(*change, '--limit', 1, out=name) == 0
        assert not np.array_equal(read_image(tmp_path / name / 'a.png'), read_image(tmp_path / 'base/a.png')), name
    assert run('--set', 'steps=3', '--steps', 3, out='base') == 0  # what the file says, said again
    assert files(tmp_path / 'base') == base


def test_trained_tensors_are_laid_over(run, weights, tmp_path):
    generator = TinyDiffusion(**OPTIONS, temperature=1.0)
    generator.load(weights[0])
    trained = generator.trainable('lora', rank=2, alpha=2.0)
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.1)
    generator.save(tmp_path / 'net_g.pth', layout='trained')
    assert run('--weights', weights[0], tmp_path / 'net_g.pth', '--limit', 1) == 0
    lq = torch.from_numpy(read_image(tmp_path / 'lq/a.png')).permute(2, 0, 1)[None].float().div(255).contiguous()
    sr = sample_images(generator, lq, [key_seed('a.png')], 0, upscaling.PURPOSE)
    assert np.abs(read_image(tmp_path / 'sr/a.png').astype(int) - picture(sr[0])).max() <= 1


def test_grey_alpha_deep_and_rotated_files(run, photos, tmp_path):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 65536, (16, 12), dtype=np.uint16)).save(photos / 'deep.png')
    Image.fromarray(rng.integers(0, 256, (16, 12, 4), dtype=np.uint8)).save(photos / 'alpha.png')
    Image.fromarray(rng.integers(0, 256, (16, 12), dtype=np.uint8)).save(photos / 'grey.bmp')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (16, 12, 3), dtype=np.uint8)).save(photos / 'turned.jpg', exif=exif)
    assert run() == 0
    sizes = {n: Image.open(tmp_path / 'sr' / n).size for n in ('deep.png', 'alpha.png', 'grey.png', 'turned.png')}
    assert sizes == {'deep.png': (24, 32), 'alpha.png': (24, 32), 'grey.png': (24, 32), 'turned.png': (32, 24)}


# ------------------------------------------------------------------ going on


@pytest.fixture
def counted(monkeypatch):
    """Names of the pictures that are sampled from here on."""
    made, sample = [], upscaling.Upscaler._sample

    def counting(self, group):
        made.extend(job.name for job, *_ in group)
        return sample(self, group)

    monkeypatch.setattr(upscaling.Upscaler, '_sample', counting)
    return made


def test_a_second_run_makes_only_what_is_missing_damaged_or_of_another_input(run, photos, tmp_path, counted):
    assert run() == 0 and sorted(counted) == NAMES
    before, out = files(tmp_path / 'sr'), tmp_path / 'sr'
    counted.clear()
    assert run('--batch', 3) == 0 and counted == []
    (out / 'a.png').unlink()
    (out / 'b.png').write_bytes(before['b.png'][:-20])
    Image.open(out / 'wide.png').save(out / 'c.png')  # whole, but another's
    assert run() == 0 and counted == ['a.png', 'b.png', 'c.png']
    assert files(out) == before
    counted.clear()
    write_png(photos / 'sub/e.png', np.zeros((16, 12, 3), np.uint8))
    assert run() == 0 and counted == ['sub/e.png']
    counted.clear()
    assert run('--overwrite') == 0 and sorted(counted) == NAMES


def test_other_settings_are_refused_and_named(run, weights, tmp_path, capsys, counted):
    assert run('--limit', 2) == 0
    before = files(tmp_path / 'sr')
    assert run('--steps', 2, '--seed', 5) == 2
    error = capsys.readouterr().err
    assert 'generator.steps: 3 there, 2 now' in error and 'seed: 0 there, 5 now' in error and '--overwrite' in error
    assert 'scale' not in error
    weights_file = tmp_path / 'net.pth'
    weights_file.write_bytes(weights[0].read_bytes())
    assert run('--weights', weights_file) == 0  # the same content
    weights_file.write_bytes(weights[1].read_bytes())
    assert run('--weights', weights_file) == 2 and 'weights: ' in capsys.readouterr().err
    assert {n: files(tmp_path / 'sr')[n] for n in before} == before
    counted.clear()
    assert run('--steps', 2, '--limit', 1, '--overwrite') == 0 and counted == ['a.png']
    counted.clear()
    assert run('--steps', 2) == 0 and counted == NAMES[1:]  # pictures of the old settings do not count


def test_foreign_files_are_left_alone(run, photos, tmp_path, capsys):
    write_png(tmp_path / 'sr/b.png', np.zeros((4, 4, 3), np.uint8))
    before = files(tmp_path / 'sr')
    assert run() == 2 and 'was not made by this tool' in capsys.readouterr().err
    assert files(tmp_path / 'sr') == before
    assert run(out='lq') == 2 and 'is one of the inputs' in capsys.readouterr().err
    assert run('--overwrite') == 0 and list(files(tmp_path / 'sr')) == NAMES
    (photos / 'a.jpg').write_bytes(b'')
    assert run(out='new') == 2 and 'would both become a.png' in capsys.readouterr().err


def test_results_inside_the_inputs_are_not_inputs(run, photos):
    assert run(out='lq/sr') == 0
    assert run(out='lq/sr') == 0
    assert list(files(photos / 'sr')) == NAMES


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(photos, options, run, tmp_path):
    command = [sys.executable, '-m', 'finpercep_plugin.cli.super_resolve', photos, '--out', tmp_path / 'killed', '-opt']
    command += [options, '--device', 'cpu', '--steps', '150']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen([str(c) for c in command], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not files(tmp_path / 'killed') and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    error = process.communicate()[1]
    there = files(tmp_path / 'killed')
    assert 0 < len(there) < len(NAMES), error[-2000:]
    assert run('--steps', 150, out='killed') == 0
    assert run('--steps', 150, out='whole') == 0
    assert same(pixels(tmp_path / 'killed'), pixels(tmp_path / 'whole'))
    assert {n: files(tmp_path / 'killed')[n] for n in there} == there
    assert not list((tmp_path / 'killed').rglob('.*.part'))


def test_an_interrupt_keeps_what_is_made(run, tmp_path, monkeypatch, capsys):
    sample, calls = upscaling.Upscaler._sample, []

    def interrupted(self, group):
        calls.append(group)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, group)

    monkeypatch.setattr(upscaling.Upscaler, '_sample', interrupted)
    assert run() == 130
    assert list(files(tmp_path / 'sr')) == NAMES[:2] and 'interrupted after 2 images' in capsys.readouterr().err


# ------------------------------------------------------------------ what goes wrong


def test_bad_and_large_images_are_skipped_and_listed(run, photos, tmp_path, capsys):
    (photos / 'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 cut')
    assert run('--max-pixels', 200) == 1
    assert list(files(tmp_path / 'sr')) == NAMES[:-1]
    failures = {f['image']: f['error'] for f in json.loads((tmp_path / 'sr/failures.json').read_text())}
    assert list(failures) == [str(photos / 'broken.jpg'), str(photos / 'wide.png')]
    assert 'cannot be read as an image' in failures[str(photos / 'broken.jpg')]
    assert '24 x 16 is more than --max-pixels 200' in failures[str(photos / 'wide.png')]
    error = capsys.readouterr().err
    assert f'skipped {photos / "broken.jpg"}: cannot be read' in error and '2 skipped: ' in error
    (photos / 'broken.jpg').unlink()
    assert run() == 0 and not (tmp_path / 'sr/failures.json').exists()


def test_out_of_memory_halves_the_batch_then_skips(run, tmp_path, monkeypatch):
    sample, sizes = upscaling.Upscaler._sample, []

    def small(self, group):
        sizes.append(len(group))
        if len(group) > 2 or group[0][0].name == 'wide.png':
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
        return sample(self, group)

    monkeypatch.setattr(upscaling.Upscaler, '_sample', small)
    assert run('--batch', 5) == 1
    assert sizes == [5, 2, 3, 1, 2, 1]
    assert list(files(tmp_path / 'sr')) == NAMES[:-1]
    (failure,) = json.loads((tmp_path / 'sr/failures.json').read_text())
    assert 'out of memory on cpu at 24 x 16; try --vae-tile or a smaller --tile' in failure['error']


def test_an_image_that_the_generator_refuses_fails_alone(run, tmp_path, monkeypatch):
    sample = upscaling.sample_images

    def picky(generator, lq, samples, *rest):
        if key_seed('b.png') in samples:
            raise KeyError('no b')
        sr = sample(generator, lq, samples, *rest)
        sr[[s == key_seed('c.png') for s in samples]] = float('nan')
        return sr

    monkeypatch.setattr(upscaling, 'sample_images', picky)
    assert run('--batch', 5) == 1
    assert list(files(tmp_path / 'sr')) == [n for n in NAMES if n not in ('b.png', 'c.png')]
    failures = sorted(f['error'] for f in json.loads((tmp_path / 'sr/failures.json').read_text()))
    assert failures[0] == "the generator failed at 12 x 16: KeyError: 'no b'" and 'not finite' in failures[1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--tile', '64'], '$.generator.tile: unknown key'),
        (['--guidance', '2'], '$.generator.guidance: unknown key'),
        (['--set', 'steps=many'], '$.generator.steps: expected int'),
        (['--set', 'steps'], 'expected key=value'),
        (['--steps', '2000'], 'sampling steps must be'),
        (['--weights', 'gone.pth'], 'generator weights not found at'),
        (['--set', 'weights='], '$.generator.weights: missing'),
        (['-opt', 'gone.yml'], 'the YAML file not found at'),
        (['--device', 'gpu'], "unknown device 'gpu'"),
        (['--prompts', 'gone.json'], 'No such file'),
    ],
)
def test_usage_errors_exit_2_and_write_nothing(run, tmp_path, capsys, arguments, message):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'sr').exists()


def test_no_images_and_no_weights_that_fit(run, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    assert run(inputs=[tmp_path / 'empty']) == 2 and 'no images in' in capsys.readouterr().err
    assert run('--set', 'network.channels=[8]') == 2 and 'does not fit the model' in capsys.readouterr().err
    assert not (tmp_path / 'sr').exists()


# ------------------------------------------------------------------ prompts, precision, processes


def test_prompts_by_name(run, tmp_path, monkeypatch, capsys, counted):
    seen, condition = {}, TinyDiffusion.condition

    def noted(self, lq, prompt=None):
        seen.setdefault(len(lq), []).append(prompt)
        return condition(self, lq, prompt)

    monkeypatch.setattr(TinyDiffusion, 'condition', noted)
    (tmp_path / 'p.json').write_text(json.dumps({'a': 'a cat', 'sub/e': 'a tree', 'd.png': 'a dog'}))
    assert run('--prompts', tmp_path / 'p.json', '--batch', 5) == 0
    assert seen == {3: [['a cat', 'a dog', 'a tree']], 2: [None], 1: [None]}
    counted.clear()
    (tmp_path / 'p.txt').write_text('a: a cat\nb: a: b\nd\ta dog\nsub/e: a tree\n')
    assert run('--prompts', tmp_path / 'p.txt') == 0 and counted == ['b.png']  # the only text that is new
    assert seen[1][-1] == ['a: b']
    seen.clear()
    assert run('--prompts', tmp_path / 'p.json', '--prompt', 'sharp', '--batch', 5, out='other') == 0
    assert seen == {5: [['a cat', 'sharp', 'sharp', 'a dog', 'a tree']], 1: [['sharp']]}
    (tmp_path / 'p.txt').write_text('nobody: x\n')
    assert run('--prompts', tmp_path / 'p.txt') == 2 and 'none is for one of the images' in capsys.readouterr().err


def test_bf16_is_near(run, tmp_path):
    assert run() == 0
    assert run('--precision', 'bf16', out='low') == 0
    high, low = pixels(tmp_path / 'sr'), pixels(tmp_path / 'low')
    differences = [np.abs(high[n] - low[n]).mean() for n in NAMES]
    assert 0 < max(differences) < 2
    assert run('--precision', 'bf16') == 2


def test_two_ranks_share_the_images(run, photos, tmp_path, monkeypatch, counted):
    assert run(out='one') == 0
    (photos / 'broken.jpg').write_bytes(b'cut')
    shares, codes = [], []
    for rank in '10':  # the second first: neither waits for the other
        counted.clear()
        monkeypatch.setenv('RANK', rank)
        monkeypatch.setenv('WORLD_SIZE', '2')
        monkeypatch.setenv('LOCAL_RANK', rank)
        codes.append(run())
        shares.append(list(counted))
    assert shares == [['b.png', 'c.png', 'sub/e.png'], ['a.png', 'sub/deep/d.png', 'wide.png']] and codes == [0, 1]
    assert files(tmp_path / 'sr') == files(tmp_path / 'one')
    assert [p.name for p in (tmp_path / 'sr').glob('failures*')] == ['failures_0of2.json']
    monkeypatch.setenv('WORLD_SIZE', '0')
    assert run() == 2


@pytest.mark.slow
def test_torchrun_reports_totals_and_ends_no_rank_early(photos, options, tmp_path):
    for name in NAMES[1::2]:  # rank 1 is done at once, with an error
        (photos / name).write_bytes(b'cut')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    command += ['-m', 'finpercep_plugin.cli.super_resolve', photos, '--out', tmp_path / 'sr', '-opt', options]
    command += ['--device', 'cpu', '--steps', '60']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    result = subprocess.run(
        [str(c) for c in command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 1
    assert f'3 of 6 images are in {tmp_path / "sr"}: 3 made now, 0 before' in result.stdout, result.stderr[-3000:]
    assert list(files(tmp_path / 'sr')) == ['a.png', 'c.png', 'sub/e.png']


def test_small_inputs_are_enlarged_first(run, photos, weights, tmp_path):
    """16 x 12 at least 24: 32 x 24 is sampled, and the result is brought to 2 x 16 by 2 x 12."""
    assert run('--seed', 7, '--min-side', 24) == 0
    generator = TinyDiffusion(**OPTIONS, temperature=1.0)
    generator.load(weights[0])
    lq = torch.from_numpy(read_image(photos / 'a.png')).permute(2, 0, 1)[None].float().div(255)
    large = torch.nn.functional.interpolate(lq, [32, 24], mode='bicubic', antialias=True).clamp(0, 1)
    sr = sample_images(generator.eval(), large, [key_seed('a.png')], 7, upscaling.PURPOSE)
    assert sr.shape[-2:] == (64, 48)
    expected = torch.nn.functional.interpolate(sr, [32, 24], mode='bicubic', antialias=True).clamp(0, 1)
    difference = read_image(tmp_path / 'sr/a.png').astype(int) - picture(expected[0]).astype(int)
    assert np.abs(difference).max() <= 1
    assert read_image(tmp_path / 'sr/wide.png').shape == (32, 48, 3)
