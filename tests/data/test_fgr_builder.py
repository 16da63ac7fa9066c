import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.data import labels
from finpercep_plugin.data.features.gabor import GaborFeatures, gabor_features
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import FGRError, decode_png, from_json, read_meta, sample_key
from finpercep_plugin.data.fgr_options import BuildOptions, identity
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.lmdb_io import Reader, Writer

from .conftest import contents, make_photo


def part(path, index, name):
    return decode_png(Reader(path).get(f'{sample_key(index)}/{name}'))


def record(path, index):
    return from_json(Reader(path).get(f'{sample_key(index)}/record'))


def test_samples_are_what_their_records_say(fgr, photos):
    for index in range(12):
        how = record(fgr, index)
        x, y, width, height = how['crop']
        photo = np.asarray(Image.open(photos / how['photo']))
        assert (width, height) == (32, 32)
        assert np.array_equal(part(fgr, index, 'gt'), photo[y : y + 32, x : x + 32])
        assert part(fgr, index, 'lq').shape == (8, 8, 3)
        assert how['producer']['type'] == 'classical' and how['mask']['change'] > 0


def test_stored_terms_are_the_formulas(fgr):
    gt, sr, mask = (part(fgr, 5, name).astype(np.float64) for name in ('gt', 'sr', 'mask'))
    m = mask[..., None] / 255
    syn = (m * sr + (1 - m) * gt) / 255
    pixel = np.abs(syn - gt / 255).mean(-1)
    assert pixel.max() > 0.02
    np.testing.assert_allclose(part(fgr, 5, 'pixel') / 65535, pixel, atol=2e-5)
    features = (gabor_features(picture.astype(np.float32)) for picture in (syn, gt / 255))
    feature = labels.feature_term(*features, mask.shape, GaborFeatures.eps)
    np.testing.assert_allclose(2 * part(fgr, 5, 'feature') / 65535, feature, atol=1e-4)


def test_p99_is_that_of_all_pixels_of_the_set(fgr):
    meta = read_meta(fgr)
    for term in labels.TERMS:
        values = np.stack([part(fgr, i, term) for i in range(12)]) / 65535 * labels.SCALES[term]
        assert meta['p99'][term] == pytest.approx(np.quantile(values, 0.99), abs=2 * labels.SCALES[term] / labels.BINS)


def test_meta_sums_the_histograms(fgr):
    meta = read_meta(fgr)
    for term in labels.TERMS:
        bins, counts = meta['histograms'][term]
        total = sum(labels.histogram(part(fgr, i, term)) for i in range(12))
        assert np.array_equal(np.flatnonzero(total), bins) and np.array_equal(total[bins], counts)
        summed = np.zeros(labels.BINS, np.int64)
        summed[bins] = counts
        assert labels.percentile(summed, 0.99, labels.SCALES[term]) == meta['p99'][term]


def test_photos_take_turns(fgr):
    meta = read_meta(fgr)
    assert sorted(meta['photo_of'][:6]) == sorted(meta['photo_of'][6:]) == list(range(6))
    assert [record(fgr, i)['photo'] for i in range(12)] == [meta['photos'][n][0] for n in meta['photo_of']]


def test_workers_do_not_change_the_set(options, fgr, tmp_path):
    seen = []
    report = build(
        dataclasses.replace(options, out=str(tmp_path / 'two'), workers=2),
        lambda done, total: seen.append((done, total)),
    )
    assert contents(tmp_path / 'two') == contents(fgr)
    assert report.added == report.count == 12 and seen == [(i, 12) for i in range(13)]


def test_a_set_grows_into_what_a_longer_build_gives(options, fgr, tmp_path):
    grown = dataclasses.replace(options, out=str(tmp_path / 'grown'), count=5)
    assert build(grown).added == 5
    assert build(dataclasses.replace(grown, count=12)).added == 7
    assert contents(tmp_path / 'grown') == contents(fgr)
    assert build(dataclasses.replace(grown, count=12)).added == 0
    with pytest.raises(FGRError, match='holds 12 samples already; count can grow, not shrink to 5'):
        build(grown)


def test_a_stopped_build_keeps_what_was_made(options, fgr, tmp_path):
    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    mine = dataclasses.replace(options, out=str(tmp_path / 'set'))
    with pytest.raises(KeyboardInterrupt):
        build(mine, stop)
    assert read_meta(tmp_path / 'set')['complete'] is False
    assert build(mine).added == 5
    assert contents(tmp_path / 'set') == contents(fgr)


def started(options, folder):
    """A process that builds, commits every 3 samples and prints the number of samples made."""
    script = (
        'from finpercep_plugin.data import fgr_builder\n'
        'from finpercep_plugin.data.fgr_options import BuildOptions\n'
        'fgr_builder._COMMIT_SAMPLES = 3\n'
        "if __name__ == '__main__':\n"
        f'    options = BuildOptions(**{dataclasses.asdict(options)!r} | dict(degradation=BuildOptions().degradation,'
        ' mask=BuildOptions().mask))\n'
        '    fgr_builder.build(options, lambda done, total: print(done, flush=True))\n'
    )
    (folder / 'run.py').write_text(script)
    return subprocess.Popen([sys.executable, str(folder / 'run.py')], stdout=subprocess.PIPE, text=True)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize('workers', [0, 2])
def test_kill_9_then_resume_equals_an_unbroken_build(options, tmp_path, workers):
    mine = dataclasses.replace(options, out=str(tmp_path / 'set'), count=60, workers=workers)
    process = started(mine, tmp_path)
    children = set()
    for line in process.stdout:
        if int(line) >= 10:
            children = _children(process.pid)
            break
    kill(process)
    assert 0 < len({k.split('/')[0] for k in Reader(mine.out).keys()}) < 60
    assert verify(mine.out) != []
    report = build(dataclasses.replace(mine, workers=0))
    assert 0 < report.added < 60
    build(dataclasses.replace(mine, out=str(tmp_path / 'whole'), workers=0))
    assert contents(mine.out) == contents(tmp_path / 'whole')
    assert verify(mine.out) == []
    _wait_until_gone(children)


WAYS = ({}, {'workers': 2}, {'devices': ['cpu']}, {'workers': 1, 'devices': ['cpu']})


@pytest.mark.parametrize(
    ('moments', 'ways'), [(3, WAYS[:1]), pytest.param(20, WAYS, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_kill_9_at_random_moments_loses_nothing(options, tmp_path, moments, ways):
    mine = dataclasses.replace(options, out=str(tmp_path / 'set'), count=16 * moments)
    build(dataclasses.replace(mine, out=str(tmp_path / 'whole')))
    whole, _ = contents(tmp_path / 'whole')
    rng, stored, there = random.Random(0), {}, 0
    for moment in range(moments):
        process = started(dataclasses.replace(mine, **ways[moment % len(ways)]), tmp_path)
        wait = there + rng.randrange(1, 14)
        for line in process.stdout:
            if int(line) >= wait:
                break
        time.sleep(rng.uniform(0, 0.03))
        kill(process)
        reader = Reader(mine.out)
        now = {key: bytes(reader.get(key)) for key in reader.keys()}
        reader.close()
        assert stored.items() <= now.items() <= whole.items()
        stored, there = now, len(now) // 7
    assert 0 < there < mine.count  # no build came to its end before it was killed
    assert build(mine).added == mine.count - there
    assert contents(mine.out) == contents(tmp_path / 'whole') and verify(mine.out) == []


def _children(pid):
    return {int(p) for p in open(f'/proc/{pid}/task/{pid}/children').read().split()}


def _wait_until_gone(pids, seconds=20):
    """No worker outlives its parent."""
    deadline = time.monotonic() + seconds
    while alive := {p for p in pids if os.path.exists(f'/proc/{p}') and 'Z' not in _state(p)}:
        assert time.monotonic() < deadline, f'still running: {alive}'
        time.sleep(0.1)


def _state(pid):
    try:
        return open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0]
    except FileNotFoundError:
        return 'Z'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'seed': 4}, r'\$\.seed: built with 3, asked for 4'),
        ({'size': 36}, r'\$\.size: built with 32, asked for 36'),
        (
            {'producers': [{'type': 'classical', 'number': [0, 1]}]},
            r'\$\.producers\[0\]\.number: built with \[0, 2\], asked for \[0, 1\]',
        ),
        ({'mask': BuildOptions().mask.__class__(feather=(0, 0))}, r'\$\.mask\.feather'),
        ({'batch': 4}, r'\$\.batch: built with 8, asked for 4'),
        ({'shard': (0, 2)}, r'\$\.shard: built with None, asked for \[0, 2\]'),
        ({'feature': 'none', 'alpha': 1.0}, r'\$\.feature: built with gabor, asked for none'),
    ],
)
def test_other_options_are_refused_and_named(options, fgr, change, message):
    with pytest.raises(FGRError, match=message):
        build(dataclasses.replace(options, out=str(fgr), **change))


def test_spelling_out_a_default_is_no_other_option(options, fgr):
    spelt = {'producers': [{'type': 'classical', 'weight': 1, 'number': [0, 2]}], 'feature': {'type': 'gabor'}}
    assert identity(dataclasses.replace(options, **spelt)) == identity(options)
    assert build(dataclasses.replace(options, out=str(fgr), producers=spelt['producers'])).added == 0


def test_other_photos_are_refused(options, tmp_path):
    for seed in range(3):
        Image.fromarray(make_photo(seed)).save(tmp_path / f'{seed}.png')
    mine = dataclasses.replace(options, photos=[str(tmp_path)], out=str(tmp_path / 'set'), count=3)
    build(mine)
    (tmp_path / '2.png').rename(tmp_path / '3.png')
    with pytest.raises(FGRError, match=r'1 gone, such as 2\.png(.|\n)*1 new, such as 3\.png'):
        build(mine)


def test_a_folder_with_something_else_in_it_is_refused(options, tmp_path):
    with Writer(tmp_path / 'other') as writer:
        writer.put({'key': b'value'})
    with pytest.raises(FGRError, match='not an FGR set, choose another folder'):
        build(dataclasses.replace(options, out=str(tmp_path / 'other')))


def test_a_lock_that_a_killed_build_left_is_no_obstacle(options, tmp_path):
    mine = dataclasses.replace(options, out=str(tmp_path / 'set'), count=2)
    (tmp_path / 'set').mkdir()
    for name in ('.build.lock', '.meta.json.part', 'lock.mdb'):
        (tmp_path / 'set' / name).write_bytes(b'')
    assert build(mine).added == 2 and verify(mine.out) == []


def test_two_builds_of_one_set_exclude_each_other(options, tmp_path):
    mine = dataclasses.replace(options, out=str(tmp_path / 'set'))

    def second(done, total):
        with pytest.raises(FGRError, match='another build is writing'):
            build(mine)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(mine, second)


def test_bad_photos_are_skipped_listed_and_do_not_change_with_workers(options, tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(make_photo(seed)).save(folder / f'good{seed}.png')
    whole = (folder / 'good0.png').read_bytes()
    (folder / 'truncated.png').write_bytes(whole[: len(whole) // 2])
    (folder / 'text.jpg').write_text('no picture')
    (folder / 'empty.png').write_bytes(b'')
    Image.fromarray(make_photo(9, 20, 80)).save(folder / 'small.png')
    mine = dataclasses.replace(options, photos=[str(folder)], out=str(tmp_path / 'set'), count=14)
    report = build(mine)
    assert [name for name, _ in report.skipped] == ['empty.png', 'small.png', 'text.jpg', 'truncated.png']
    assert dict(report.skipped)['small.png'] == '80x20 pixels, less than the crop of 32'
    assert report.count == 14 and verify(mine.out) == []
    build(dataclasses.replace(mine, out=str(tmp_path / 'two'), workers=2))
    assert contents(tmp_path / 'two') == contents(mine.out)


def test_grey_alpha_16_bit_and_rotated_photos_are_used(options, tmp_path):
    base = make_photo(0, 40, 64)
    Image.fromarray(base).convert('L').save(tmp_path / 'grey.png')
    Image.fromarray(np.dstack([base, np.full((40, 64), 128, np.uint8)])).save(tmp_path / 'alpha.png')
    Image.fromarray(base[..., 0].astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown 40 wide, 64 high
    Image.fromarray(base).save(tmp_path / 'turned.jpg', exif=exif, quality=95)
    mine = dataclasses.replace(options, photos=[str(tmp_path)], out=str(tmp_path / 'set'), count=16)
    report = build(mine)
    assert report.skipped == [] and verify(mine.out) == []
    crops = [record(mine.out, i)['crop'] for i in range(16) if record(mine.out, i)['photo'] == 'turned.jpg']
    assert len(crops) == 4 and max(y for _, y, _, _ in crops) > 40 - 32


def test_no_usable_photo_says_why(options, tmp_path):
    (tmp_path / 'a.png').write_text('no picture')
    with pytest.raises(FGRError, match='none of the 1 photos can be used .*a.png: cannot be read as an image'):
        build(dataclasses.replace(options, photos=[str(tmp_path)], out=str(tmp_path / 'set')))
    (tmp_path / 'none').mkdir()
    with pytest.raises(FGRError, match='no image files in'):
        build(dataclasses.replace(options, photos=[str(tmp_path / 'none')], out=str(tmp_path / 'set')))


def test_alpha_is_a_matter_of_reading(options, tmp_path):
    mine = dataclasses.replace(options, out=str(tmp_path / 'set'), count=2)
    build(mine)
    assert build(dataclasses.replace(mine, alpha=0.8)).added == 0
    assert read_meta(mine.out)['alpha'] == 0.8


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'size': 30}, 'size: expected a multiple of scale 4'),
        ({'count': 0}, 'count: expected at least 1'),
        ({'alpha': 1.1}, 'alpha: expected 0 to 1'),
        ({'feature': 'none'}, "alpha: expected 1 with feature 'none'"),
        ({'producers': []}, 'producers: expected at least one'),
        ({'batch': 0}, 'batch: expected at least 1'),
        ({'shard': (2, 2)}, r'shard: expected \[i, n\] with 0 <= i < n, got \[2, 2\]'),
        ({'devices': ['cuda:0', 'cpu']}, 'devices: expected devices of one kind, got cuda:0, cpu'),
    ],
)
def test_bad_options_are_refused(options, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(options, **change)


def test_meta_is_json_that_people_can_read(fgr):
    meta = json.loads((fgr / 'meta.json').read_text())
    assert meta['complete'] and meta['count'] == 12 and meta['produced_by'] == {'classical': 12}
    assert meta['options']['producers'][0]['strength'] == [0.0, 1.0]
