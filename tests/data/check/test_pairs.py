import cv2
import lmdb
import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.data.check.pairs import Pairs, check_pairs, check_single
from finpercep_plugin.data.check.report import Work


def picture(seed, height=24, width=32):
    rng = np.random.default_rng(seed)
    field = cv2.resize(
        rng.uniform(0, 255, (4, 5, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return np.clip(field + rng.normal(0, 20, field.shape), 0, 255).astype(np.uint8)


def reduced(gt, scale=4):
    return cv2.resize(gt, (gt.shape[1] // scale, gt.shape[0] // scale), interpolation=cv2.INTER_AREA)


@pytest.fixture
def pairs(tmp_path):
    """Three sound pairs: gt/0.png to 2.png, lq/0x4.png to 2x4.png."""
    for number in range(3):
        for side, image in (('gt', picture(number)), ('lq', reduced(picture(number)))):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / side / f'{number}{"x4" * (side == "lq")}.png')
    return Pairs(str(tmp_path / 'gt'), str(tmp_path / 'lq'), 4, template='{}x4')


def problems(pairs, **options):
    report = check_pairs(pairs, **options)
    return [(p.where, p.kind, p.text) for p in report.problems]


@pytest.mark.parametrize('threads', [0, 2])
def test_sound_pairs_have_no_findings(pairs, threads):
    seen = []
    report = check_pairs(pairs, Work(threads, lambda source, done, total: seen.append(done)))
    assert (report.findings, report.checked, seen) == ([], 3, [1, 2, 3])


def replace(pairs, **changes):
    import dataclasses

    return dataclasses.replace(pairs, **changes)


def test_the_scale_is_that_of_the_first_pair(pairs):
    assert problems(replace(pairs, scale=None)) == []
    wrong = problems(replace(pairs, scale=2))
    assert [p[0] for p in wrong] == ['0.png', '1.png', '2.png']
    assert wrong[0][1:] == ('size', 'gt is 32x24, lq 8x6: not 2 times')


def test_missing_partners_of_both_sides_are_named(pairs, tmp_path):
    (tmp_path / 'lq/1x4.png').rename(tmp_path / 'lq/9x4.png')
    assert problems(pairs) == [
        ('gt 1.png', 'partner', 'no lq called 1x4.png'),
        ('lq 9x4.png', 'partner', 'no gt for it'),
    ]


def test_gt_a_little_larger_is_cut_in_validation_but_fails_training(pairs, tmp_path):
    Image.fromarray(np.pad(picture(1), ((0, 2), (0, 3), (0, 0)), 'edge')).save(tmp_path / 'gt/1.png')
    report = check_pairs(pairs)
    assert report.problems == []
    assert report.notes[0].text == 'gt is 35x26, lq 8x6: not 4 times; BasicSR cuts gt to 32x24'
    assert problems(replace(pairs, gt_size=16)) == [('1.png', 'size', 'gt is 35x26, lq 8x6: not 4 times')]


def test_every_problem_of_a_pair_is_listed_at_once(pairs, tmp_path):
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / 'gt/0.png')
    (tmp_path / 'lq/1x4.png').write_bytes(b'')
    Image.fromarray(reduced(picture(7))).save(tmp_path / 'lq/2x4.png')
    found = problems(replace(pairs, gt_size=28))
    assert ('gt 0.png', 'blank', 'black all over') in found
    assert ('lq 1x4.png', 'unreadable', 'an empty file') in found
    assert [p[:2] for p in found if p[1] == 'stranger'] == [('2.png', 'stranger')]
    assert len([p for p in found if p[1] == 'small']) == 3


@pytest.mark.parametrize('kernel', ['NEAREST', 'BILINEAR', 'BICUBIC', 'LANCZOS'])
def test_gt_that_is_lq_enlarged_is_found(pairs, tmp_path, kernel):
    lq = Image.open(tmp_path / 'lq/1x4.png')
    lq.resize((32, 24), Image.Resampling[kernel]).save(tmp_path / 'gt/1.png')
    assert problems(pairs) == [('1.png', 'enlarged', f'gt is lq enlarged ({kernel.lower()})')]


def test_equal_pictures_at_scale_1(tmp_path):
    for side in ('gt', 'lq'):
        (tmp_path / side).mkdir()
        Image.fromarray(picture(0)).save(tmp_path / side / 'a.png')
    found = problems(Pairs(str(tmp_path / 'gt'), str(tmp_path / 'lq'), 1))
    assert found == [('a.png', 'enlarged', 'gt and lq are the same picture')]


def test_copies_are_told_once_through_gt(pairs, tmp_path):
    for side, name in (('gt', '{}.png'), ('lq', '{}x4.png')):
        (tmp_path / side / name.format(2)).write_bytes((tmp_path / side / name.format(0)).read_bytes())
    assert problems(pairs) == [('gt 2.png', 'copy', 'the same file as 0.png')]


def test_a_list_of_names(pairs, tmp_path):
    (tmp_path / 'names.txt').write_text('0.png (24,32,3)\n\n1.png (24,32,3)\n0.png (24,32,3)\n5.png (24,32,3)\n')
    found = problems(replace(pairs, meta_info=str(tmp_path / 'names.txt')))
    assert [p[1:] for p in found] == [
        ('unreadable', 'an empty line'),
        ('unreadable', '0.png a second time'),
        ('partner', 'no lq called 5x4.png'),
    ]


def test_folders_without_pairs_and_folders_that_are_not_there(pairs, tmp_path):
    assert problems(replace(pairs, template='{}x3'))[-1] == ('', 'partner', 'no pair there')
    assert 'No such file' in problems(replace(pairs, lq=str(tmp_path / 'nowhere')))[0][2]


def write_lmdb(folder, values, lines=None):
    """As BasicSR's make_lmdb_from_imgs: values without a checksum, and meta_info.txt."""
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for key, image in values.items():
            transaction.put(key.encode(), cv2.imencode('.png', image[..., ::-1])[1].tobytes())
    environment.close()
    lines = [f'{k}.png ({v.shape[0]},{v.shape[1]},3) 1' for k, v in values.items()] if lines is None else lines
    (folder / 'meta_info.txt').write_text('\n'.join(lines) + '\n')


@pytest.fixture
def stores(tmp_path):
    images = {f'{n:04d}': picture(n) for n in range(3)}
    write_lmdb(tmp_path / 'gt.lmdb', images)
    write_lmdb(tmp_path / 'lq.lmdb', {k: reduced(v) for k, v in images.items()})
    return Pairs(str(tmp_path / 'gt.lmdb'), str(tmp_path / 'lq.lmdb'), 4)


def test_sound_lmdb_pairs(stores):
    report = check_pairs(stores)
    assert (report.findings, report.checked) == ([], 3)
    assert check_single(stores.lq).findings == []


def test_an_lmdb_that_disagrees_with_its_list(stores, tmp_path):
    lines = ['0000.png (24,32,3) 1', '0001.png (24,32', '0007.png (24,32,3) 1']
    (tmp_path / 'gt.lmdb/meta_info.txt').write_text('\n'.join(lines))
    assert [(p[0], p[2]) for p in problems(stores)] == [
        ('gt.lmdb/0002', 'in the store, but not in meta_info.txt: never read'),
        ('gt.lmdb/meta_info.txt:2', 'expected "name.png (height,width,channels) level", got \'0001.png (24,32\''),
        ('gt.lmdb/meta_info.txt:3', 'the store has no 0007'),
        ('lq 0002', 'no gt for it'),
    ]


def test_an_lmdb_without_its_list(stores, tmp_path):
    (tmp_path / 'lq.lmdb/meta_info.txt').unlink()
    assert 'meta_info.txt' in problems(stores)[0][2]


def test_a_truncated_lmdb(stores, tmp_path):
    data = (tmp_path / 'gt.lmdb/data.mdb').read_bytes()
    (tmp_path / 'gt.lmdb/data.mdb').write_bytes(data[: len(data) // 2])
    assert 'truncated' in problems(stores)[0][2]
