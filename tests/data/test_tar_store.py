import multiprocessing
import os
import pickle
import tarfile

import numpy as np
import pytest

from finpercep_plugin.data import tar_store
from finpercep_plugin.data.lmdb_io import CorruptValueError, MissingKeyError, StoreError
from finpercep_plugin.data.tar_store import TarReader, tar_files, write_tar

VALUES = {(f'{i:08d}', part): f'{part} of {i}'.encode() * 50 for i in range(6) for part in ('gt', 'lq', 'record')}


def put(folder, numbers, name='a.tar', values=VALUES):
    write_tar(folder / name, [(s, p, v) for (s, p), v in values.items() if int(s) in numbers])


@pytest.fixture
def store(tmp_path):
    put(tmp_path, {3, 4, 5}, 'a.tar')
    put(tmp_path, {0, 1, 2}, 'b.tar')
    return tmp_path


def index_of(tar):
    return tar.with_name(f'{tar.name}.index.npz')


def test_every_value_is_found_in_its_tar(store):
    reader = TarReader(store)
    assert list(reader.keys()) == sorted(f'{s}/{p}' for s, p in VALUES)
    for (sample, part), value in VALUES.items():
        assert bytes(reader.get(f'{sample}/{part}')) == value
    with reader.borrow() as get:
        assert get('00000004/lq') == VALUES['00000004', 'lq']


@pytest.mark.parametrize('numbers', [(0, 1, 2, 3), (0, 3, 5), (1, 4)])
def test_tars_may_overlap_and_have_gaps(tmp_path, numbers):
    put(tmp_path, set(numbers), 'a.tar')
    put(tmp_path, set(range(6)) - set(numbers), 'b.tar')
    reader = TarReader(tmp_path)
    assert all(bytes(reader.get(f'{s}/{p}')) == v for (s, p), v in VALUES.items())


def test_members_are_named_as_webdataset_wants(store):
    with tarfile.open(store / 'a.tar') as tar:
        assert tar.getnames()[:3] == ['00000003.gt.png', '00000003.lq.png', '00000003.record.json']
        assert tar.extractfile('00000004.gt.png').read() == VALUES['00000004', 'gt']


def test_the_same_values_make_the_same_tar(tmp_path):
    put(tmp_path, {1, 2}, 'a.tar')
    put(tmp_path, {1, 2}, 'b.tar')
    assert (tmp_path / 'a.tar').read_bytes() == (tmp_path / 'b.tar').read_bytes()


def test_what_is_not_there_is_named(store):
    reader = TarReader(store)
    for key in ('00000009/gt', '00000001/sr', 'name', '/'):
        with pytest.raises(MissingKeyError, match=f"no key '{key}'"):
            reader.get(key)
    with pytest.raises(StoreError, match='no .tar files here'):
        TarReader(store / 'nowhere').get('00000000/gt')


def test_the_index_is_made_once_and_again_for_another_tar(store, monkeypatch):
    index_of(store / 'a.tar').unlink()
    scanned, scan = [], tar_store._scan
    monkeypatch.setattr(tar_store, '_scan', lambda tar: scanned.append(tar.name) or scan(tar))
    assert bytes(TarReader(store).get('00000004/gt')) == VALUES['00000004', 'gt']
    assert bytes(TarReader(store).get('00000004/gt')) == VALUES['00000004', 'gt']
    assert scanned == ['a.tar']
    os.utime(store / 'b.tar', ns=(1, 1))
    assert bytes(TarReader(store).get('00000001/gt')) == VALUES['00000001', 'gt']
    assert scanned == ['a.tar', 'b.tar']
    index_of(store / 'a.tar').write_bytes(b'cut off')
    assert bytes(TarReader(store).get('00000004/gt')) == VALUES['00000004', 'gt']
    assert scanned == ['a.tar', 'b.tar', 'a.tar'] and not list(store.glob('.*'))


def test_an_index_that_cannot_be_kept_is_made_again(store, monkeypatch):
    index_of(store / 'a.tar').unlink()

    def refuse(*_):
        raise PermissionError(13, 'read-only')

    monkeypatch.setattr(tar_store, '_keep', refuse)
    assert bytes(TarReader(store).get('00000004/gt')) == VALUES['00000004', 'gt']
    assert not index_of(store / 'a.tar').exists()


def test_a_tar_of_webdatasets_own_writer_is_read(tmp_path):
    wds = pytest.importorskip('webdataset')
    with wds.TarWriter(str(tmp_path / 'w.tar')) as writer:
        for i in range(3):
            own = {'gt.png': VALUES[f'{i:08d}', 'gt'], 'record.json': VALUES[f'{i:08d}', 'record']}
            writer.write({'__key__': f'{i:08d}', **own})
    assert bytes(TarReader(tmp_path).get('00000002/gt')) == VALUES['00000002', 'gt']
    assert bytes(TarReader(tmp_path).get('00000000/record')) == VALUES['00000000', 'record']


@pytest.mark.parametrize('keep', [0.3, 0.5, 'members'])
def test_a_truncated_tar_is_one_clear_error(store, keep):
    tar = store / 'a.tar'
    with tarfile.open(tar) as archive:
        end_of_a_member = archive.getmembers()[4].offset
    os.truncate(tar, end_of_a_member if keep == 'members' else int(keep * tar.stat().st_size))
    with pytest.raises(StoreError, match='a.tar: truncated or no tar'):
        TarReader(store).get('00000003/gt')


def test_a_tar_that_shrinks_after_it_was_opened_does_not_end_the_process(store):
    reader = TarReader(store)
    reader.get('00000001/gt')  # opens the indices, and maps b.tar only
    os.truncate(store / 'a.tar', 2000)
    with pytest.raises(StoreError, match=r'a.tar: it has 2000 bytes, its index tells of \d+'):
        reader.get('00000005/gt')


@pytest.mark.parametrize(
    ('content', 'message'),
    [(b'junk' * 400, 'truncated or no tar'), (b'', 'truncated or no tar'), (bytes(10240), 'an empty tar')],
)
def test_a_file_that_is_no_tar(tmp_path, content, message):
    (tmp_path / 'x.tar').write_bytes(content)
    with pytest.raises(StoreError, match=f'x.tar: {message}'):
        TarReader(tmp_path).get('00000000/gt')


def test_members_of_another_naming_are_refused(tmp_path):
    (tmp_path / 'photo.png').write_bytes(b'x')
    with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
        tar.add(tmp_path / 'photo.png', 'photo.png')
    with pytest.raises(StoreError, match='photo.png: members are called <number>.<part>.<ending>'):
        TarReader(tmp_path).get('00000000/gt')


def test_a_flipped_bit_is_found(store):
    tar = store / 'a.tar'
    status, data = tar.stat(), bytearray(tar.read_bytes())
    data[data.index(VALUES['00000004', 'gt']) + 7] ^= 1
    tar.write_bytes(data)
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does it
    with pytest.raises(CorruptValueError, match="'00000004/gt' fails its checksum"):
        TarReader(store).get('00000004/gt')
    assert bytes(TarReader(store).get('00000004/lq')) == VALUES['00000004', 'lq']


def test_a_write_that_fails_leaves_no_tar(tmp_path):
    def values():
        yield '00000000', 'gt', b'first'
        raise OSError(28, 'No space left on device')

    with pytest.raises(StoreError, match='a.tar: cannot be written .No space left'):
        write_tar(tmp_path / 'a.tar', values())
    assert tar_files(tmp_path) == []
    put(tmp_path, {1})
    assert bytes(TarReader(tmp_path).get('00000001/gt')) == VALUES['00000001', 'gt']


def _read(reader, queue):
    queue.put(bytes(reader.get('00000005/gt')))


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_an_open_reader_crosses_into_a_child(store, method):
    reader = TarReader(store)
    reader.get('00000005/gt')
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read, args=(reader, queue))
    child.start()
    assert queue.get(timeout=60) == VALUES['00000005', 'gt']
    child.join()
    assert bytes(pickle.loads(pickle.dumps(reader)).get('00000002/gt')) == VALUES['00000002', 'gt']
    reader.close()
    assert bytes(reader.get('00000002/gt')) == VALUES['00000002', 'gt']


def test_the_index_knows_nothing_but_numbers_and_names(store):
    with np.load(index_of(store / 'a.tar'), allow_pickle=False) as stored:
        assert stored['samples'].tolist() == [3, 4, 5] and stored['parts'].tolist() == ['gt', 'lq', 'record']
        assert stored['stamp'][0] == (store / 'a.tar').stat().st_size
