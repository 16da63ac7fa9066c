import pytest

from finpercep_plugin.cli.options import main, shipped


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_list_names_every_file_with_its_first_line(capsys):
    assert main(['list']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert all(len(line.split()) > 3 for line in lines)


def test_copy_all(folder, capsys):
    assert main(['copy']) == 0
    assert sorted(f.stem for f in (folder / 'options').iterdir()) == sorted(shipped())
    assert main(['copy']) == 0  # nothing differs


@pytest.mark.parametrize('name', ['rm_2_full', 'rm_2_full.yml'])
def test_copy_one(folder, name):
    assert main(['copy', name]) == 0
    assert (folder / 'options/rm_2_full.yml').read_text() == shipped()['rm_2_full'].read_text()
    assert len(list((folder / 'options').iterdir())) == 1


def test_unknown_name(folder, capsys):
    assert main(['copy', 'rm_2_ful']) == 2
    assert "no options named 'rm_2_ful'; did you mean 'rm_2_full'?" in capsys.readouterr().err
    assert not (folder / 'options').exists()


def test_a_changed_file_is_replaced_only_when_told(folder, capsys):
    main(['copy', 'rm_2_full'])
    (folder / 'options/rm_2_full.yml').write_text('mine')
    assert main(['copy']) == 2
    assert 'exists and differs; --force replaces it' in capsys.readouterr().err
    assert (folder / 'options/rm_2_full.yml').read_text() == 'mine'
    assert main(['copy', 'rm_2_full', '--force']) == 0
    assert (folder / 'options/rm_2_full.yml').read_text() != 'mine'
