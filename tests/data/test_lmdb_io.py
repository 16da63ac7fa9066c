import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import pytest

from finpercep_plugin.data import lmdb_io
from finpercep_plugin.data.lmdb_io import CorruptValueError, MissingKeyError, Reader, StoreError, Writer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Writer(tmp_path / 'store') as writer:
        writer.put({'a': b'alpha', 'b': b'', 'c': bytes(range(256))})
    return tmp_path / 'store'


def _read_in_child(reader: Reader, queue) -> None:
    value = bytes(reader.get('a'))
    queue.put((value, lmdb_io._handles.environments[reader.path][0] == os.getpid()))


def test_what_was_put_is_got(store):
    reader = Reader(store)
    assert bytes(reader.get('a')) == b'alpha'
    assert bytes(reader.get('b')) == b''
    assert list(reader.keys()) == ['a', 'b', 'c']


def test_raw_values_and_lengths_are_of_what_is_stored(store):
    reader = Reader(store)
    assert reader.raw('a')[:5] == b'alpha' and len(reader.raw('a')) == 9
    assert list(reader.lengths(['c', 'nope', 'b'])) == [260, None, 4]
    with pytest.raises(MissingKeyError, match="no key 'nope'"):
        reader.raw('nope')


def test_no_store_is_one_clear_error(tmp_path):
    with pytest.raises(StoreError, match='no LMDB store here'):
        Reader(tmp_path / 'absent').get('a')


@pytest.mark.parametrize('junk', [b'', b'junk' * 5000])
def test_a_file_that_is_no_store(tmp_path, junk):
    (tmp_path / 'data.mdb').write_bytes(junk)
    with pytest.raises(StoreError, match='not a readable LMDB store'):
        Reader(tmp_path).get('a')


def test_a_truncated_store_is_refused_before_it_can_end_the_process(tmp_path):
    with Writer(tmp_path) as writer:
        writer.put({f'{i:04d}': bytes(3000) for i in range(50)})
    size = (tmp_path / 'data.mdb').stat().st_size
    os.truncate(tmp_path / 'data.mdb', size // 2)
    with pytest.raises(StoreError, match='truncated'):
        Reader(tmp_path).get('0001')


def test_missing_key_names_it(store):
    with pytest.raises(MissingKeyError, match="no key 'nope'"):
        Reader(store).get('nope')


def test_a_flipped_byte_is_found(tmp_path):
    payload = b'MARKER' + bytes(100)
    with Writer(tmp_path) as writer:
        writer.put({'k': payload})
    file = tmp_path / 'data.mdb'
    data = bytearray(file.read_bytes())
    data[data.index(payload) + 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptValueError, match="'k' fails its checksum"):
        Reader(tmp_path).get('k')


def test_the_map_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_io, '_FIRST_MAP', 1 << 16)
    values = {f'{i:04d}': os.urandom(5000) for i in range(200)}
    with Writer(tmp_path) as writer:
        writer.put(values)
    reader = Reader(tmp_path)
    assert all(bytes(reader.get(k)) == v for k, v in values.items())


def _append(path: str, size: int) -> None:
    with Writer(path) as writer:
        writer.put({'much': bytes(size), 'z': b'last'})


def test_an_open_reader_follows_a_store_that_outgrew_its_map(store):
    reader = Reader(store)
    reader.get('a')
    child = multiprocessing.get_context('spawn').Process(target=_append, args=(str(store), 12 << 20))
    child.start()
    child.join()
    assert bytes(reader.get('z')) == b'last' and bytes(reader.get('a')) == b'alpha'


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path):
    with Writer(tmp_path) as writer:
        with pytest.raises(StoreError, match='cannot be written'):
            writer.put({'first': b'1', '': b'LMDB takes no empty key'})
        assert list(Reader(tmp_path).keys()) == []


def test_keys_go_in_the_transaction_that_writes_others(store):
    with Writer(store) as writer:
        with pytest.raises(StoreError):
            writer.put({'d': b'delta', '': b'LMDB takes no empty key'}, remove=['a'])
        assert 'a' in Reader(store).keys()
        writer.put({'d': b'delta'}, remove=['a', 'never there'])
    assert 'a' not in Reader(store).keys() and bytes(Reader(store).get('d')) == b'delta'


def test_readers_share_and_survive_a_writer_in_the_same_process(store):
    first, second = Reader(store), Reader(store)
    assert bytes(first.get('a')) == bytes(second.get('a'))
    with Writer(store) as writer:
        writer.put({'d': b'delta'})
        assert bytes(first.get('d')) == b'delta'
    assert bytes(second.get('d')) == b'delta'
    first.close()
    assert bytes(second.get('a')) == b'alpha'


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_an_open_reader_crosses_into_a_child(store, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f'no {method} on this platform')
    reader = Reader(store)
    reader.get('a')
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(reader, queue))
    child.start()
    assert queue.get(timeout=60) == (b'alpha', True)  # by a handle of its own
    child.join()
    assert bytes(reader.get('c')) == bytes(range(256))


def test_an_open_reader_can_be_pickled(store):
    reader = Reader(store)
    reader.get('a')
    assert bytes(pickle.loads(pickle.dumps(reader)).get('a')) == b'alpha'


def test_borrowed_values_are_not_copies(store):
    reader = Reader(store)
    with reader.borrow() as get:
        values = {key: get(key) for key in 'abc'}
        assert bytes(values['a']) == b'alpha' and bytes(values['c']) == bytes(range(256))
        assert values['a'].readonly
        with pytest.raises(MissingKeyError, match="no key 'nope'"):
            get('nope')
        with reader.borrow() as again:  # in the same thread
            assert bytes(again('b')) == b''
    with Writer(store) as writer:  # no transaction was left open
        writer.put({'d': b'delta'})
    assert bytes(reader.get('d')) == b'delta'


def test_an_error_inside_gives_the_store_back(store):
    reader = Reader(store)
    with pytest.raises(RuntimeError), reader.borrow():
        raise RuntimeError
    found = []
    thread = threading.Thread(target=lambda: found.append(bytes(reader.get('a'))), daemon=True)
    thread.start()
    thread.join(30)
    assert found == [b'alpha']
    with pytest.raises(StoreError, match='no LMDB store here'), Reader(store / 'absent').borrow():
        pass
    assert bytes(reader.get('a')) == b'alpha'
