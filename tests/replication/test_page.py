"""The report, from results that are made up."""

import pytest
from PIL import Image

from finpercep_plugin.replication import page as page_module
from finpercep_plugin.replication.page import BEGIN, END, write_report
from finpercep_plugin.replication.results import Results

TITLES = {'ReFL: curves on held-out crops': 'curves_refl.png', 'ReFL: change from the start': 'final_refl.png'}


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes seconds."""
    monkeypatch.setattr(page_module, 'draw_all', lambda results, folder: {t: folder / n for t, n in TITLES.items()})


def test_the_report_keeps_other_words_and_says_what_is_missing(replication, tmp_path, no_plots):
    page = tmp_path / 'replication.md'
    page.write_text(f'# Mine\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n', encoding='utf-8')
    told = write_report(replication.out, page)
    text = page.read_text(encoding='utf-8')
    assert '6 cells' in told
    assert text.startswith('# Mine\n\nBefore.') and text.endswith('After.\n') and '\nold\n' not in text
    assert '**Not run or not finished' in text and 'dpo-ccl-0' in text
    assert '| ReFL: the global score rises while pictures get worse by PSNR' not in text
    assert (
        '| ReFL: the global score rises while pictures get worse by fidelity to lq (dB) |' in text
        and '| 2 of 2 |' in text
    )
    assert [row.split('](')[1] for row in text.splitlines() if row.startswith('![')] == [
        'replication/curves_refl.png)',
        'replication/final_refl.png)',
    ]
    tables = [block for block in text.split('\n\n') if block.startswith('|')]
    assert len(tables) == 5
    for table in tables:
        assert len({line.count('|') for line in table.splitlines()}) == 1


def test_a_folder_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match='has measured nothing yet'):
        write_report(tmp_path, tmp_path / 'page.md')


@pytest.mark.slow
def test_plots_of_what_is_there(replication, tmp_path):
    pytest.importorskip('matplotlib')
    from finpercep_plugin.replication.plots import draw_all

    files = draw_all(Results(replication.out), tmp_path / 'plots')
    assert sorted(f.name for f in files.values()) == ['curves_refl.png', 'final_refl.png', 'training_refl.png']
    for file in files.values():
        with Image.open(file) as picture:
            assert picture.format == 'PNG' and picture.width > 600
