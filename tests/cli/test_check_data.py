import json

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.cli import check_data


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for seed in range(3):
        picture = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(picture[..., 0] if seed == 2 else picture).save(folder / f'{seed}.png')
    return folder


def test_sound_photos(photos, capsys):
    assert check_data.main([str(photos)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f'{photos}: note: 1 x grey, read as RGB, such as 2.png',
        f'{photos}: 3 photos, sound',
    ]


@pytest.mark.parametrize('threads', ['0', '4'])
def test_all_problems_at_once_and_as_json(photos, tmp_path, capsys, threads):
    (photos / 'a.png').write_bytes(b'')
    (photos / 'b\n.png').write_bytes(b'x')
    file = tmp_path / 'sub/found.json'
    code = check_data.main(
        [str(photos), '--crop', '25', '--json', str(file), '--quiet', '--notes', '--threads', threads]
    )
    assert code == 1
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6 and shown[4].startswith(f'{photos}: b\\n.png: cannot be read')
    found = json.loads(file.read_text())
    assert found['problems'] == 5
    (report,) = found['reports']
    assert [p['kind'] for p in report['problems']].count('small') == 3
    assert report['checked'] == 5 and report['notes'][0]['where'] == '2.png'


def test_pairs_and_validation_photos(photos, tmp_path, capsys):
    assert check_data.main(['--gt', str(photos), '--lq', str(photos), '--scale', '1', '--quiet']) == 1
    assert capsys.readouterr().out.count('gt and lq are the same picture') == 3
    assert check_data.main([str(photos), '--val', str(photos / '1.png'), '--quiet']) == 1
    assert '1.png: of ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'nothing to check'),
        (['--gt', 'x'], '--lq: pairs need both'),
        (['nowhere'], 'nowhere: no such file or folder'),
        (['-opt', 'nowhere.yml'], 'the YAML file not found'),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    assert check_data.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_json_that_cannot_be_written(photos, capsys):
    assert check_data.main([str(photos), '--json', str(photos / '0.png/x.json'), '--quiet']) == 2
    assert '--json' in capsys.readouterr().err


def test_wrong_options_exit_2():
    with pytest.raises(SystemExit) as stop:
        check_data.main(['x', '--threads', '-1'])
    assert stop.value.code == 2
