"""Sets made by a tiny generator: what is in them, that nothing depends on batches or interruptions."""

import dataclasses
import multiprocessing
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.data.fgr_format import FGRError, decode_png  # noqa: E402
from finpercep_plugin.data.lmdb_io import Reader, StoreError  # noqa: E402
from finpercep_plugin.data.preference_builder import PURPOSE, PreferenceBuild, PreferenceBuilder  # noqa: E402
from finpercep_plugin.data.preference_format import read_meta, read_record  # noqa: E402
from finpercep_plugin.data.preference_verify import verify  # noqa: E402
from finpercep_plugin.data.producers.torch_tools import to_uint8  # noqa: E402
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion  # noqa: E402
from finpercep_plugin.registry import REWARDS  # noqa: E402
from finpercep_plugin.rewards.base import RewardOutput  # noqa: E402
from finpercep_plugin.rng import key_seed  # noqa: E402
from finpercep_plugin.rollout import sample_images  # noqa: E402

SETTINGS = PreferenceBuild(members=5, best=2, seed=4)


class Pictures(Dataset):
    """Six pairs whose lq are drawn from torch's generator at each reading; item 3 cannot be read if `broken`."""

    def __init__(self, broken=False):
        self.broken = broken

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if self.broken and index == 3:
            raise ValueError('truncated')
        return {'lq': torch.rand(3, 6, 8), 'gt': torch.rand(3, 12, 16), 'lq_path': f'{index}.png'}


class Brightness:
    """The mean of sr, of which it keeps what it was given."""

    higher_is_better = True

    def __init__(self, levels=None):
        self.levels, self.seen = levels, []

    def __call__(self, sr, lq=None, gt=None, prompt=None):
        self.seen.append((sr, lq, gt, prompt))
        score = sr.flatten(1).mean(1)
        score = score if self.levels is None else (score * self.levels).round() / self.levels
        return RewardOutput(score, {'mean': score})


def make_generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = {'channels': [8, 8], 'norm_groups': 4}
        generator = TinyDiffusion(network=network, scale=2, steps=2, temperature=1.0, residual_sd=0.2)
        torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    return generator.requires_grad_(False).eval()


def make(reward=None, settings=SETTINGS, batch=3, dataset=None, generator=None):
    reward, dataset = reward or Brightness(), dataset or Pictures()
    return PreferenceBuilder(generator or make_generator(), reward, dataset, settings, batch=batch)


def contents(path):
    reader = Reader(path)
    return {key: bytes(reader.get(key)) for key in reader.keys()}, read_meta(path)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """A process that has computed with OpenMP threads cannot be forked: its child would wait for them for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def built(one_thread, tmp_path_factory):
    """A finished set of all six; not to be written to."""
    out = tmp_path_factory.mktemp('built') / 'set'
    report = make().build(out, options={'generator': 'tiny'})
    assert dataclasses.astuple(report) == (6, 24, 30, 0, [])
    return out


def test_samples_are_those_of_the_sampler_and_the_reward_sees_what_is_stored(built, tmp_path):
    reward, generator = Brightness(), make_generator()
    make(reward, batch=5).build(tmp_path, count=2)
    reader = Reader(tmp_path)
    for index, (seen, lq, gt, prompt) in enumerate(reward.seen):
        stored = torch.from_numpy(decode_png(reader.get(f'{index:08d}/lq'))).permute(2, 0, 1)[None] / 255
        assert torch.equal(lq, stored.expand(5, -1, -1, -1)) and prompt == [''] * 5 and gt.shape == (5, 3, 12, 16)
        sr = sample_images(generator, lq, [key_seed(index, n) for n in range(5)], 4, PURPOSE)
        record = read_record(reader.get, index)
        assert record['scores'] == seen.flatten(1).mean(1).tolist() == record['terms']['mean']
        assert record['made'] == {'seed': 4, 'source': f'{index}.png'}
        for n, image in enumerate(sr):
            expected = to_uint8(image[None])
            assert torch.equal(seen[n], torch.from_numpy(expected).permute(2, 0, 1) / 255)
            if n in {number for pair in record['pairs'] for number in pair[:2]}:
                assert np.array_equal(decode_png(reader.get(f'{index:08d}/sample_{n}')), expected)
    order = np.argsort(read_record(reader.get, 0)['scores'])
    assert [pair[:2] for pair in read_record(reader.get, 0)['pairs']] == [
        [w, l]
        for w in order[:-3:-1]
        for l in order[:2]  # noqa: E741
    ]


def test_the_set_is_sound_and_says_how_it_was_made(built):
    assert verify(built) == []
    assert read_meta(built)['options'] == {**dataclasses.asdict(SETTINGS), 'generator': 'tiny'}
    assert read_meta(built)['scale'] == 2 and read_meta(built)['gt'] and read_meta(built)['lq_sizes'] == [[6, 8]]


def test_batches_do_not_change_the_pairs(built, tmp_path):
    make(batch=1).build(tmp_path, options={'generator': 'tiny'})
    for index in range(6):
        one, other = (read_record(Reader(path).get, index) for path in (built, tmp_path))
        assert [pair[:2] for pair in one['pairs']] == [pair[:2] for pair in other['pairs']]
        assert one['scores'] == pytest.approx(other['scores'], abs=1e-4)


def test_a_set_grows_and_goes_round_the_data_again_with_new_draws(built, tmp_path):
    builder = make()
    assert builder.build(tmp_path, count=2, options={'generator': 'tiny'}).made == 10
    assert builder.build(tmp_path, count=6, options={'generator': 'tiny'}).made == 20
    assert contents(tmp_path) == contents(built)
    builder.build(tmp_path, count=8, options={'generator': 'tiny'})
    first, second = (read_record(Reader(tmp_path).get, i) for i in (0, 6))
    assert first['made']['source'] == second['made']['source'] == '0.png'
    assert first['sha256']['lq'] != second['sha256']['lq']


def test_ties_and_close_pairs_are_left_out(built, tmp_path):
    coarse = make(Brightness(levels=2)).build(tmp_path / 'ties')
    assert coarse.tied == 6 - sum(1 for n in read_meta(tmp_path / 'ties')['pairs_of'] if n) and coarse.pairs < 24
    gaps = sorted(pair[2] for i in range(6) for pair in read_record(Reader(built).get, i)['pairs'])
    report = make(settings=dataclasses.replace(SETTINGS, min_gap=gaps[12])).build(tmp_path / 'gap')
    assert report.pairs == sum(gap >= gaps[12] for gap in gaps) and verify(tmp_path / 'gap') == []


def test_interrupted_within_a_record_no_sample_is_made_twice(built, tmp_path):
    told = []

    def stop(done, wanted):
        told.append(done)
        if done == 13:  # 2 records and 3 of 5 samples
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make().build(tmp_path, options={'generator': 'tiny'}, progress=stop)
    assert told == [0, 3, 5, 8, 10, 13] and not read_meta(tmp_path)['complete']
    with pytest.raises(FGRError, match=r'\$\.members: built with 5, asked for 6'):
        make(settings=dataclasses.replace(SETTINGS, members=6)).build(tmp_path, options={'generator': 'tiny'})
    reward, told = Brightness(), []
    report = make(reward).build(tmp_path, options={'generator': 'tiny'}, progress=lambda done, _: told.append(done))
    assert report.made == sum(len(seen[0]) for seen in reward.seen) == 17
    assert told == [13, 15, 18, 20, 23, 25, 28, 30, 30]
    assert contents(tmp_path) == contents(built)
    assert make().build(tmp_path, options={'generator': 'tiny'}).made == 0


def test_kill_9_at_any_moment_then_resume_equals_an_unbroken_build(built, tmp_path):
    def child(pipe):
        torch.set_num_threads(1)
        make().build(tmp_path, options={'generator': 'tiny'}, progress=lambda done, _: pipe.send(done))

    done = 0
    for stop_at in (4, 8, 16, 17, 24):  # within records and between them
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context('fork').Process(target=child, args=(theirs,))
        process.start()
        before = done
        while done < stop_at:
            assert ours.poll(60), 'the build stands still'
            done = ours.recv()
        assert done >= before
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    report = make().build(tmp_path, options={'generator': 'tiny'})
    assert 0 < report.made <= 30 - done
    assert contents(tmp_path) == contents(built) and verify(tmp_path) == []


def test_pictures_may_be_8_bit(built, tmp_path):
    class Stored(Pictures):
        def __getitem__(self, index):
            return {k: to_bytes(v) for k, v in super().__getitem__(index).items()}

    def to_bytes(value):
        return torch.from_numpy(to_uint8(value[None])).permute(2, 0, 1) if torch.is_tensor(value) else value

    make(dataset=Stored()).build(tmp_path, options={'generator': 'tiny'})
    assert contents(tmp_path) == contents(built)


def test_what_cannot_be_made_is_skipped_and_told(tmp_path):
    report = make(dataset=Pictures(broken=True)).build(tmp_path / 'data')
    assert report.skipped == [('00000003', 'its data cannot be read: ValueError: truncated')]
    assert (report.count, report.pairs, report.tied) == (6, 20, 0) and verify(tmp_path / 'data') == []

    class Larger(Pictures):
        def __getitem__(self, index):
            return {**super().__getitem__(index), 'gt': torch.rand(3, 12, 18)}

    report = make(dataset=Larger()).build(tmp_path / 'size', count=1)
    assert report.skipped == [('00000000', 'gt is [12, 18] pixels, expected [12, 16]')]

    class Gone(Pictures):
        def __getitem__(self, index):
            raise StoreError('the disk is gone')

    with pytest.raises(StoreError):
        make(dataset=Gone()).build(tmp_path / 'gone')
    assert not list(Reader(tmp_path / 'gone').keys())

    generator = make_generator()
    decode = generator.decode
    generator.decode = lambda latent, cond, region=None: decode(latent, cond) * float('nan')
    report = make(generator=generator).build(tmp_path / 'nan', count=1)
    assert report.skipped == [('00000000', 'the generator gave values that are not finite')]

    class Undefined(Brightness):
        def __call__(self, sr, **more):
            return RewardOutput(super().__call__(sr, **more).score.log() * 0 / 0)

    report = make(Undefined()).build(tmp_path / 'reward', count=1)
    assert 'the reward gave scores that are not finite' in report.skipped[0][1]


def test_gt_may_be_left_out_and_lower_may_be_better(tmp_path):
    class Darkness(Brightness):
        higher_is_better = False

    make(Darkness(), dataclasses.replace(SETTINGS, gt=False)).build(tmp_path, count=1)
    record = read_record(Reader(tmp_path).get, 0)
    assert not read_meta(tmp_path)['gt'] and 'gt' not in record['sha256']
    means = record['terms']['mean']
    assert [record['pairs'][0][0], record['pairs'][0][1]] == [int(np.argmin(means)), int(np.argmax(means))]


def test_rewards_that_compare_samples_of_one_picture_are_combined_over_all_of_them(tmp_path):
    """Scores of the group of 5, made 3 at a time, are those of all 5 at once."""
    sections = {'sharp': {'type': 'Sharpness'}, 'like': {'type': 'PSNR'}}
    reward = REWARDS.get('Weighted')(sections, normalise='range')
    make(reward).build(tmp_path, count=1)
    record = read_record(Reader(tmp_path).get, 0)
    columns = torch.tensor([record['terms'][name] for name in sections])
    low, high = columns.min(1, keepdim=True).values, columns.max(1, keepdim=True).values
    expected = ((columns - low) / (high - low)).sum(0)
    assert record['scores'] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_generator_whose_samples_cannot_differ_is_refused():
    one_step = SimpleNamespace(prediction='eps', steps=torch.tensor([999]), noise_t=None)
    with pytest.raises(ValueError, match='samples of one image hardly differ; set noise_t of the generator'):
        make(generator=one_step)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match='1 <= best <= members / 2'):
        PreferenceBuild(members=4, best=3)
    with pytest.raises(ValueError, match='min_gap >= 0'):
        PreferenceBuild(min_gap=-1.0)
