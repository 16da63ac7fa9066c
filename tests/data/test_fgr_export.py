import json

import pytest

from finpercep_plugin.cli.export_fgr import main
from finpercep_plugin.data import fgr_export
from finpercep_plugin.data.fgr_export import export
from finpercep_plugin.data.fgr_format import FGRError, read_meta
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.lmdb_io import CorruptValueError, Reader
from finpercep_plugin.data.tar_store import TarReader, write_tar

from .conftest import flip_byte


def content(store):
    return {key: bytes(store.get(key)) for key in store.keys()}


def test_there_and_back_is_the_same_set(fgr, tmp_path):
    assert export(fgr, tmp_path / 'tars', 'tar', shard_size=5) == 0
    assert [f.name for f in sorted((tmp_path / 'tars').glob('*.tar'))] == [
        'fgr-00000000.tar',
        'fgr-00000005.tar',
        'fgr-00000010.tar',
    ]
    export(tmp_path / 'tars', tmp_path / 'back', 'lmdb')
    assert content(Reader(fgr)) == content(TarReader(tmp_path / 'tars')) == content(Reader(tmp_path / 'back'))
    assert read_meta(fgr) == read_meta(tmp_path / 'tars') == read_meta(tmp_path / 'back')
    assert verify(tmp_path / 'tars') == verify(tmp_path / 'back') == []
    assert (tmp_path / 'tars' / 'README.md').read_text() == (fgr / 'README.md').read_text()


@pytest.mark.parametrize('to', ['tar', 'lmdb'])
def test_a_copy_that_was_cut_off_goes_on(fgr, tmp_path, monkeypatch, to):
    monkeypatch.setattr(fgr_export, '_COMMIT_SAMPLES', 5)

    def stop(done, total):
        if done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(fgr, tmp_path, to, shard_size=5, progress=stop)
    assert not read_meta(tmp_path)['complete']
    first = tmp_path / 'fgr-00000000.tar'
    before = first.stat().st_mtime_ns if to == 'tar' else None
    (tmp_path / '.fgr-00000005.tar.part').write_bytes(b'half of it')
    told = []
    assert export(fgr, tmp_path, to, shard_size=5, progress=lambda *t: told.append(t)) == 5
    assert told[-1] == (12, 12) and content(Reader(fgr)) == content(fgr_export.open_store(tmp_path))
    assert read_meta(tmp_path) == read_meta(fgr) and verify(tmp_path) == []
    assert before is None or first.stat().st_mtime_ns == before


def test_a_damaged_source_is_not_copied(fgr, tmp_path):
    import shutil

    shutil.copytree(fgr, tmp_path / 'set')
    flip_byte(tmp_path / 'set', '00000005/sr')
    with pytest.raises(CorruptValueError, match='00000005/sr'):
        export(tmp_path / 'set', tmp_path / 'out', 'tar', shard_size=4)
    assert [f.name for f in (tmp_path / 'out').glob('*.tar')] == ['fgr-00000000.tar']
    assert not read_meta(tmp_path / 'out')['complete']


def test_what_is_refused(fgr, tmp_path):
    with pytest.raises(FGRError, match='a copy needs a folder of its own'):
        export(fgr, fgr, 'tar')
    export(fgr, tmp_path / 'a', 'tar', shard_size=5)
    with pytest.raises(FGRError, match='of a copy with another --shard-size'):
        export(fgr, tmp_path / 'a', 'tar', shard_size=6)
    with pytest.raises(FGRError, match='it holds another store'):
        export(fgr, tmp_path / 'a', 'lmdb')
    (tmp_path / 'b').mkdir()
    write_tar(tmp_path / 'b' / 'mine.tar', [('00000000', 'gt', b'x')])
    with pytest.raises(FGRError, match='it holds another store'):
        export(fgr, tmp_path / 'b', 'tar')
    meta = read_meta(tmp_path / 'a')
    (tmp_path / 'a' / 'meta.json').write_text(json.dumps({**meta, 'count': 11}))
    with pytest.raises(FGRError, match='it holds another set'):
        export(fgr, tmp_path / 'a', 'tar', shard_size=5)


def test_the_command(fgr, tmp_path, capsys):
    arguments = ['--data', str(fgr), '--out', str(tmp_path / 'tars'), '--shard-size', '7']
    assert main(arguments) == 0 and f'12 samples in {tmp_path}/tars' in capsys.readouterr().out
    assert main(arguments) == 0 and '12 of them there before' in capsys.readouterr().out
    assert main(['--data', str(tmp_path), '--out', str(tmp_path / 'x'), '--quiet']) == 2
    assert 'not an FGR set' in capsys.readouterr().err
