import pickle

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.config import ConfigError, parse
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import FGRError, from_json, read_meta, sample_key
from finpercep_plugin.data.fgr_options import BuildOptions
from finpercep_plugin.data.lmdb_io import Reader
from finpercep_plugin.data.photo_dataset import FinPercepPhotoDataset
from finpercep_plugin.data.photos import MetaInfo, Photo, PhotoCache, photo_list, photo_sizes

from .conftest import make_photo

lmdb = pytest.importorskip('lmdb')


@pytest.fixture
def store(photos, tmp_path):
    """An LMDB as BasicSR's make_lmdb_from_imgs writes it, with a key that its list has and the file has not."""
    folder = tmp_path / 'photos.lmdb'
    environment = lmdb.open(str(folder), map_size=1 << 24)
    lines = []
    with environment.begin(write=True) as transaction:
        for number in range(4):
            key = f'sub/p.{number}'
            transaction.put(key.encode(), (photos / f'p{number}.png').read_bytes())
            lines.append(f'{key}.png (60,70,3) 1')
        transaction.put(b'broken', b'no picture')
    environment.close()
    (folder / 'meta_info.txt').write_text('\n'.join([*lines, 'broken.png (60,70,3) 1', 'gone.png (60,70,3) 1', '']))
    return folder


def test_an_lmdb_of_pictures_is_read_by_its_keys(store, photos):
    found = photo_list([store])
    assert found[1] == Photo('sub/p.1.png', str(store / 'sub/p.1.png'), 'sub/p.1')
    assert np.array_equal(found[1].read(), make_photo(1))
    assert photo_sizes(found) == [*((photos / f'p{n}.png').stat().st_size for n in range(4)), 10, -1]
    cache = pickle.loads(pickle.dumps(PhotoCache(found, 32)))
    assert np.array_equal(cache.get(2), make_photo(2)) and cache.get(2) is cache.get(2)
    assert cache.get(4) == 'cannot be read as an image (cannot identify image file it)'
    assert cache.get(5) == "no key 'gone' in the LMDB"


def test_basicsr_s_own_lmdb_is_read(photos, tmp_path):
    pytest.importorskip('basicsr')
    from finpercep_plugin.integrations.basicsr import require

    require()
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    names = [f'p{n}.png' for n in range(3)]
    keys = [f'p{n}' for n in range(3)]
    make_lmdb_from_imgs(str(photos), str(tmp_path / 'made.lmdb'), names, keys, multiprocessing_read=False)
    found = photo_list([str(tmp_path / 'made.lmdb')])
    assert [photo.name for photo in found] == names
    assert all(np.array_equal(photo.read(), make_photo(n)) for n, photo in enumerate(found))


def test_an_lmdb_and_a_folder_together(store, photos):
    names = [photo.name for photo in photo_list([store, photos])]
    assert len(names) == len(set(names)) == 12
    assert any(name.endswith('photos.lmdb/sub/p.0.png') for name in names)


@pytest.mark.parametrize(
    ('line', 'path'),
    [
        ('a b.png', 'a b.png'),
        ('sub/a.png (480,480,3)', 'sub/a.png'),
        ('a.png (480, 480) 1', 'a.png'),
        ('gt/a.png, lq/a.png', 'gt/a.png'),
        ('a (1).png', 'a (1).png'),
        ('ä.png', 'ä.png'),
    ],
)
def test_lines_of_meta_info(tmp_path, line, path):
    (tmp_path / 'list.txt').write_text(f'\ufeff{line}\n\n', encoding='utf-8')
    (photo,) = photo_list([tmp_path / 'list.txt'])
    assert photo == Photo(path, str(tmp_path / path))
    (elsewhere,) = photo_list([MetaInfo(str(tmp_path / 'list.txt'), '/data')])
    assert elsewhere == Photo(path, f'/data/{path}')


def test_a_photo_is_listed_once_and_one_that_is_not_there_says_so(photos, tmp_path):
    (photos.parent / 'list.txt').write_text(f'{photos.name}/p1.png\n{photos.name}/nope.png\n')
    found = photo_list([photos, photos / 'p0.png', photos.parent / 'list.txt'])
    assert [photo.name for photo in found] == [f'{photos.name}/p{n}.png' for n in range(6)] + [
        f'{photos.name}/nope.png'
    ]
    assert photo_sizes(found)[-1] == -1 and PhotoCache(found, 8).get(6) == 'no such file'


def test_sources_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nope.txt: no such file or folder'):
        photo_list([tmp_path / 'nope.txt'])
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00\x81')
    with pytest.raises(FGRError, match='binary.txt: not a text file'):
        photo_list([tmp_path / 'binary.txt'])
    (tmp_path / 'set.lmdb').mkdir()
    with pytest.raises(FGRError, match='set.lmdb: an LMDB without meta_info.txt'):
        photo_list([tmp_path / 'set.lmdb'])
    (tmp_path / 'empty.txt').write_text('\n')
    with pytest.raises(FGRError, match='no image files in'):
        photo_list([tmp_path / 'empty.txt'])


def test_a_build_from_an_lmdb_is_the_build_from_its_files(store, tmp_path):
    folder = tmp_path / 'files'
    (folder / 'sub').mkdir(parents=True)
    for number in range(4):
        Image.fromarray(make_photo(number)).save(folder / f'sub/p.{number}.png')
    (folder / 'broken.png').write_bytes(b'no picture')
    listed = {'meta_info': str(store / 'meta_info.txt'), 'root': str(folder)}
    made = {}
    for name, source in (('store', str(store)), ('files', listed)):
        options = parse(BuildOptions, {'photos': [source], 'out': str(tmp_path / name), 'count': 12, 'size': 32})
        report = build(options)
        assert [photo for photo, _ in report.skipped] == ['broken.png', 'gone.png']
        reader = Reader(options.out)
        made[name] = [bytes(reader.get(f'{sample_key(i)}/gt')) for i in range(12)]
        assert from_json(reader.get('00000000/record'))['photo'] in dict(read_meta(options.out)['photos'])
    assert made['store'] == made['files']


def test_the_photo_data_set_has_these_sources_too(store):
    data = FinPercepPhotoDataset({'dataroot': str(store), 'size': 32, 'seed': 0, 'on_error': 'skip'})
    assert len(data) == 6 and data[1]['gt_path'].endswith('photos.lmdb/sub/p.1.png')
    listed = {'meta_info': str(store / 'meta_info.txt'), 'root': str(store)}
    assert len(FinPercepPhotoDataset({'dataroot': listed, 'size': 32})) == 6
    with pytest.raises(ConfigError, match='dataroot'):
        FinPercepPhotoDataset({'dataroot': {'meta_inf': 'x'}, 'size': 32})
