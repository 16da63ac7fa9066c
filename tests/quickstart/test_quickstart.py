"""The quick start: its photos, its folder, and (slow) the whole of it at a fraction of its size."""

import re

import pytest

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.cli.quickstart import main
from finpercep_plugin.quickstart.measure import Figures
from finpercep_plugin.quickstart.page import verdict
from finpercep_plugin.quickstart.photos import HELD_OUT, TRAIN, find_photos
from finpercep_plugin.quickstart.recipe import QuickStart, Recipe


def test_no_photo_is_on_both_sides_and_the_stereo_pair_is_not_split():
    pytest.importorskip('skimage')
    train, held_out = find_photos()
    assert not set(train) & set(held_out) and len(train) >= 3 and held_out
    assert not [name for name in TRAIN + HELD_OUT if name.startswith('motorcycle_right')]
    assert sum(name.startswith('motorcycle') for name in TRAIN + HELD_OUT) == 1


def test_a_folder_holds_one_quick_start(tmp_path):
    QuickStart(tmp_path, 0, [tmp_path / 'a.png'], [tmp_path / 'b.png'], Recipe())
    QuickStart(tmp_path, 0, [tmp_path / 'a.png'], [tmp_path / 'b.png'], Recipe())
    with pytest.raises(ValueError, match='another seed'):
        QuickStart(tmp_path, 1, [tmp_path / 'a.png'], [tmp_path / 'b.png'], Recipe())


def test_a_photo_on_both_sides_is_refused(tmp_path):
    with pytest.raises(ValueError, match='1 photos are to be trained on and held out, such as .*a.png'):
        QuickStart(tmp_path, 0, [tmp_path / 'a.png'], [tmp_path / 'a.png'], Recipe())


def test_verdict_is_the_mean_of_paired_differences():
    def figures(psnr, reward):
        return Figures(psnr, reward, [r + 1 for r in reward], [0.5] * len(psnr), [0.9] * len(psnr))

    told = verdict(
        {
            'bicubic': figures([25.0, 27.0], [0, 0]),
            'before': figures([24.0, 28.0], [1.0, 2.0]),
            'after': figures([24.5, 27.5], [1.5, 2.5]),
        }
    )
    assert told['PSNR, before - bicubic'].mean == pytest.approx(0.0)
    assert told['PSNR, after - before'].mean == pytest.approx(0.0)
    assert told['reward, after - before'].mean == told['held-out reward, after - before'].mean == pytest.approx(0.5)
    assert (told['reward, after - before'].low, told['reward, after - before'].high) == (0.5, 0.5)


def test_wrong_usage(tmp_path, capsys):
    assert main(['--train', str(tmp_path)]) == 2
    assert 'give both --train and --held-out' in capsys.readouterr().err
    assert main(['--effort', '0']) == 2
    assert main(['--train', str(tmp_path / 'no'), '--held-out', str(tmp_path)]) == 2
    assert 'no such file or folder' in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_loop_writes_its_page_and_is_not_repeated(tmp_path, capsys):
    pytest.importorskip('skimage')
    assert main(['--out', str(tmp_path / 'q'), '--effort', '0.02']) == 0
    page = (tmp_path / 'q/index.html').read_text()
    assert 'src="data:image/png;base64,' in page and 'http' not in re.sub(r'http://www.w3.org/\S+', '', page)
    for text in ('held-out reward', 'PSNR', 'map after', 'CCL + ReFL', 'seed'):
        assert text in page
    assert len(list((tmp_path / 'q/scores/after').glob('*.png'))) >= 64
    capsys.readouterr()
    assert main(['--out', str(tmp_path / 'q'), '--effort', '0.02']) == 0
    assert capsys.readouterr().out.count('trained already') == 7
