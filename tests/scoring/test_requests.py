import pytest

from finpercep_plugin.scoring.protocols import PROTOCOLS
from finpercep_plugin.scoring.requests import file_hash, parse_request, resolve, version_of

pytest.importorskip('pyiqa')


def test_names_are_of_pyiqa_or_of_the_rewards():
    plain = PROTOCOLS['pyiqa']
    psnr, own = resolve('psnr', plain), resolve('PSNR:y_channel=false', plain)
    assert psnr.section == {'type': 'PyIQA', 'metric': 'psnr', 'options': {}}
    assert own.section == {'type': 'PSNR', 'y_channel': False}
    assert psnr.needs == own.needs == {'gt'}
    assert psnr.higher_is_better and not resolve('piqe', plain).higher_is_better
    assert resolve('sharp=Sharpness', plain).label == 'sharp'
    assert resolve('Function:function=math:sqrt', plain).needs == set()


def test_a_protocol_puts_its_own_in_place_and_options_go_on_top():
    seesr = PROTOCOLS['seesr']
    section = resolve('y=psnr:crop_border=4', seesr).section
    assert section['options'] == {'test_y_channel': True, 'color_space': 'ycbcr', 'crop_border': 4}
    assert resolve('maniqa', seesr).section['metric'] == 'maniqa-pipal'
    assert seesr.metrics['psnr']['options'] == {'test_y_channel': True, 'color_space': 'ycbcr'}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('pnsr', "neither pyiqa nor this project has a metric 'pnsr'; did you mean 'psnr'"),
        ('fid', 'it measures a set of images'),
        ('PSNR:y_chanel=true', "y_chanel: unknown key; did you mean 'y_channel'"),
        ('Weighted', 'Weighted is made of others'),
        ('psnr:4', r'expected \[LABEL=\]NAME\[:KEY=VALUE,...\]'),
        ('=psnr', r'expected \[LABEL=\]NAME'),
    ],
)
def test_what_cannot_be_measured_is_named(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        resolve(text, PROTOCOLS['pyiqa'])
    assert str(caught.value).startswith(f'--metrics {text}: ')


def test_basicsr_has_three():
    pytest.importorskip('basicsr')
    basicsr = PROTOCOLS['basicsr']
    niqe = resolve('niqe', basicsr)
    assert (niqe.section['type'], niqe.needs, niqe.higher_is_better) == ('BasicSR', set(), False)
    with pytest.raises(ValueError, match="calculate_psnr takes no 'test_y'; did you mean 'test_y_channel'"):
        resolve('psnr:test_y=true', basicsr)


def test_versions_follow_the_files_they_name(tmp_path):
    import pyiqa

    file = tmp_path / 'weights.pth'
    file.write_bytes(b'one')
    section = {'type': 'PyIQA', 'metric': 'lpips', 'options': {'pretrained_model_path': str(file)}}
    first = version_of(section)
    assert first == f'pyiqa {pyiqa.__version__} lpips pretrained_model_path=weights.pth@{file_hash(file)[:16]}'
    file.write_bytes(b'two')
    assert version_of(section) != first


def test_parse_request_keeps_colons_of_values():
    assert parse_request('f=Function:function=a.b:c') == ('f', 'Function', {'function': 'a.b:c'})
