"""Weight files: safe reading, strict keys, atomic writing."""

import pytest
import torch

from finpercep_plugin.generators.checkpoint import check_keys, read_weights, write_weights


def test_round_trip(tmp_path):
    file = tmp_path / 'folder' / 'weights.pth'
    write_weights({'params': {'a': torch.arange(3.0)}, 'arch': {'scale': 4}}, file)
    data = read_weights(file, 'Net')
    assert torch.equal(data['params']['a'], torch.arange(3.0)) and data['arch'] == {'scale': 4}
    assert [p.name for p in file.parent.iterdir()] == ['weights.pth']


def test_a_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / 'weights.pth'
    write_weights({'params': {}}, file)
    before = file.read_bytes()
    with pytest.raises(Exception, match='pickle'):
        write_weights({'params': {'f': lambda: 0}}, file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['weights.pth']


def test_missing_file_says_what_and_where(tmp_path):
    (tmp_path / 'net_g_100.pth').touch()
    with pytest.raises(FileNotFoundError, match="weights of Net: no file .*net_g_10.pth; did you mean 'net_g_100.pth'"):
        read_weights(tmp_path / 'net_g_10.pth', 'Net')


def test_damaged_and_foreign_files(tmp_path):
    file = tmp_path / 'weights.pth'
    write_weights({'params': {'a': torch.zeros(1000)}}, file)
    data = file.read_bytes()
    for cut in (data[:1500], data[:-500]):
        file.write_bytes(cut)
        with pytest.raises(ValueError, match='cannot be read'):
            read_weights(file, 'Net')
    torch.save({'state': 1}, file)
    with pytest.raises(ValueError, match=r"no dict 'params'; found \['state'\]"):
        read_weights(file, 'Net')


class _Dangerous:
    def __reduce__(self):
        return (print, ('executed',))


def test_code_is_not_unpickled(tmp_path, capsys):
    torch.save({'params': {}, 'x': _Dangerous()}, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='cannot be read'):
        read_weights(tmp_path / 'weights.pth', 'Net')
    assert 'executed' not in capsys.readouterr().out


def test_all_key_problems_in_one_error():
    wanted = {'a': torch.zeros(2), 'b': torch.zeros(2), 'c': torch.zeros(2)}
    found = {'a': torch.zeros(2), 'c': torch.zeros(3), 'd': torch.zeros(1), 'e': torch.zeros(1)}
    with pytest.raises(ValueError) as error:
        check_keys(wanted, found, 'file.pth')
    assert str(error.value).splitlines()[1:] == [
        '  missing: b',
        '  unexpected: d',
        '  unexpected: e',
        '  shape: c is (3,) in the file, (2,) in the model',
    ]
    check_keys(wanted, {'a': torch.zeros(2)}, 'file.pth', subset=True)
