import re

from finpercep_plugin.scoring.papers import latex, markdown
from finpercep_plugin.scoring.statistics import compare
from finpercep_plugin.scoring.table import Row

COLUMNS = {'psnr': True, 'map_mean': False}


def told():
    table = {'ours_50%': [30.0, 32.0], 'a|b': [20.0, 22.0], 'c': [25.0, 27.0]}
    rows = [
        Row(m, f'{i}.png', str(i), 8, 8, {'psnr': v, 'map_mean': v / 100})
        for m, vs in table.items()
        for i, v in enumerate(vs)
    ]
    return compare(rows, COLUMNS, draws=200)


def test_markdown_is_a_table_with_the_protocol():
    text = markdown(told(), 'seesr: Y', {'psnr': 'pyiqa 1'}, {'without gt': ['x', 'y']})
    lines = text.splitlines()
    assert lines[0].startswith('Protocol seesr: Y.')
    assert lines[2] == '| method | n | psnr ↑ | map_mean ↓ |'
    assert lines[4] == '| ours_50% | 2 | **31.00 [30.00, 32.00]** | 0.3100 [0.3000, 0.3200] |'
    assert lines[5] == '| a\\|b | 2 | 21.00 [20.00, 22.00] | **0.2100 [0.2000, 0.2200]** |'
    assert '| c | -5.00 [-5.00, -5.00] | -0.0500 [-0.0500, -0.0500] |' in lines
    assert '- psnr: `pyiqa 1`' in lines and '- without gt: 2 (x, y)' in lines
    assert len({len(re.findall(r'(?<!\\)\|', line)) for line in lines if line.startswith('| ours')}) == 1


def test_latex_is_a_booktabs_table():
    text = latex(told(), 'seesr: 4 px & Y', {'psnr': 'pyiqa 1'})
    assert '% psnr: pyiqa 1' in text
    assert '% c - ours_50%, psnr: -5.00 [-5.00, -5.00]' in text
    assert r'\caption{Protocol seesr: 4 px \& Y. Means over 2 images.}' in text
    assert r'Method & psnr $\uparrow$ & map\_mean $\downarrow$ \\' in text
    assert r'ours\_50\% & \textbf{31.00} & 0.3100 \\' in text
    assert r'c & \underline{26.00} & \underline{0.2600} \\' in text
    assert text.count('{') == text.count('}')
