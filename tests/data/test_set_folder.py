import pytest

from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.lmdb_io import MissingKeyError, StoreError
from finpercep_plugin.data.set_folder import differences, exclusive, make_folder, read_or_skip


def read(name):
    if name == 'b':
        raise MissingKeyError('no key b')
    if name == 'c':
        raise ValueError('not a picture')
    return name.upper()


def test_a_bad_sample_is_replaced_by_the_next_good_one():
    names = ['a', 'b', 'c']
    assert read_or_skip('set', names, 0, read, 'raise') == ('a', 'A', 0)
    assert read_or_skip('set', names, 1, read, 'skip') == ('a', 'A', 2)
    with pytest.raises(FGRError, match='set: sample c: not a picture'):
        read_or_skip('set', names, 2, read, 'raise')
    with pytest.raises(FGRError, match='none of the 2 samples can be read'):
        read_or_skip('set', names[1:], 0, read, 'skip')


def test_an_error_of_another_kind_is_not_a_bad_sample():
    with pytest.raises(ZeroDivisionError):
        read_or_skip('set', ['a'], 0, lambda name: 1 / 0, 'skip')


def test_differences_go_into_sections_and_lists_of_producers():
    old = {'a': {'b': 1, 'c': [1, 2]}, 'producers': [{'type': 'x'}, {'type': 'y'}]}
    new = {'a': {'b': 1, 'c': [1, 3]}, 'producers': [{'type': 'x'}, {'type': 'z'}], 'd': 0}
    assert list(differences(old, new)) == [
        '$.a.c: built with [1, 2], asked for [1, 3]',
        '$.d: built with None, asked for 0',
        '$.producers[1].type: built with y, asked for z',
    ]
    assert list(differences(old, old)) == []


def test_a_folder_is_locked_until_its_build_ends(tmp_path):
    with exclusive(tmp_path):
        with pytest.raises(FGRError, match='another build is writing'):
            with exclusive(tmp_path):
                pass
    with exclusive(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(StoreError, match=r'file/set: cannot be written \(Not a directory\)'):
        make_folder(tmp_path / 'file' / 'set')
    with (
        pytest.raises(StoreError, match=r'none: cannot be written \(No such file or directory\)'),
        exclusive(tmp_path / 'none'),
    ):
        pass
    make_folder(tmp_path / 'a' / 'b')
    make_folder(tmp_path / 'a' / 'b')
    assert (tmp_path / 'a' / 'b').is_dir()


def test_iterating_comes_to_an_end():
    with pytest.raises(IndexError):
        read_or_skip('set', ['a', 'b'], 2, lambda name: name, 'skip')
    assert read_or_skip('set', ['a', 'b'], -1, lambda name: name, 'raise') == ('b', 'b', 0)
