from pathlib import Path

import numpy as np
import pytest

from finpercep_plugin.images import list_images, write_png
from finpercep_plugin.scoring.sources import Templates, common_root, name_methods, pair, plain_items


def folder_of(folder, *names):
    for name in names:
        write_png(folder / name, np.zeros((4, 4), np.uint8))
    return folder


def paired(tmp_path, methods, gt=None, **more):
    roots = {name: tmp_path / name for name in methods}
    return pair({name: list_images([root]) for name, root in roots.items()}, roots, gt, **more)


def test_partners_have_the_same_stem(tmp_path):
    folder_of(tmp_path / 'ours', 'a.png', 'city/b.png')
    gt = folder_of(tmp_path / 'gt', 'a.bmp', 'city/b.png', 'c.png')
    found = paired(tmp_path, ['ours'], gt)
    assert [(i.key, i.name, i.gt.relative_to(gt).as_posix()) for i in found.items] == [
        ('a', 'a.png', 'a.bmp'),
        ('city/b', 'city/b.png', 'city/b.png'),
    ]
    assert found.unmatched == {'gt without sr': ['c']}


def test_the_only_one_of_a_stem_is_found_in_another_folder(tmp_path):
    folder_of(tmp_path / 'ours', 'x/a.png', 'x/b.png')
    gt = folder_of(tmp_path / 'gt', 'a.png', 'p/b.png', 'q/b.png')
    found = paired(tmp_path, ['ours'], gt)
    assert [i.gt and i.gt.name for i in found.items] == ['a.png', None]
    assert found.unmatched == {'without gt': ['x/b'], 'gt without sr': ['p/b', 'q/b']}


def test_templates_name_all_three(tmp_path):
    folder_of(tmp_path / 'ours', '0001_ours_x4.png', '0002_ours_x4.png', 'grid.png')
    folder_of(tmp_path / 'swinir', '0001_swinir_77.png')
    gt = folder_of(tmp_path / 'gt', '0001_HR.png', '0002_HR.png')
    lq = folder_of(tmp_path / 'lq', '0001x4.png', '0002x4.png')
    names = Templates('{stem}_{method}_*', '{stem}_HR', '{stem}x4')
    found = paired(tmp_path, ['ours', 'swinir'], gt, lq=lq, templates=names)
    assert [(i.key, i.method, i.gt.name, i.lq.name) for i in found.items] == [
        ('0001', 'ours', '0001_HR.png', '0001x4.png'),
        ('0001', 'swinir', '0001_HR.png', '0001x4.png'),
        ('0002', 'ours', '0002_HR.png', '0002x4.png'),
    ]
    assert found.unmatched == {
        'ours: named otherwise than {stem}_{method}_*': ['grid.png'],
        'not in swinir': ['0002'],
    }


def test_a_text_is_found_with_the_folder_or_without(tmp_path):
    folder_of(tmp_path / 'ours', 'a/x.png', 'b/y.png')
    found = paired(tmp_path, ['ours'], prompts={'a/x': 'a cat', 'y': 'a dog'})
    assert [i.prompt for i in found.items] == ['a cat', 'a dog']
    items = plain_items(list_images([tmp_path / 'ours']), tmp_path / 'ours', {'x': 'a bird'})
    assert [(i.key, i.prompt) for i in items] == [('a/x.png', 'a bird'), ('b/y.png', '')]


def test_two_of_one_stem_are_refused(tmp_path):
    folder_of(tmp_path / 'ours', 'a.png', 'a.bmp')
    with pytest.raises(ValueError, match="ours: a.bmp and a.png are both 'a'; keep one"):
        paired(tmp_path, ['ours'])


@pytest.mark.parametrize('wrong', ['out', '{stem}{stem}', '{name}_{stem}', 'x/{stem}'])
def test_templates_that_tell_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match='--gt-name: expected a name with {stem} once'):
        Templates(gt=wrong)


def test_methods_are_called_by_their_folder_or_otherwise(tmp_path):
    (tmp_path / 'a/out').mkdir(parents=True)
    (tmp_path / 'b/out').mkdir(parents=True)
    named = name_methods([str(tmp_path / 'a/out'), f'theirs={tmp_path / "b/out"}'])
    assert named == {'out': tmp_path / 'a/out', 'theirs': tmp_path / 'b/out'}
    with pytest.raises(ValueError, match="two are called 'out'; write NAME="):
        name_methods([str(tmp_path / 'a/out'), str(tmp_path / 'b/out')])
    with pytest.raises(FileNotFoundError, match='--methods: no folder nowhere'):
        name_methods(['x=nowhere'])


def test_common_root(tmp_path):
    for name in ('x/a', 'x/b'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'x/a/f.png').touch()
    assert common_root([tmp_path / 'x/a']) == tmp_path / 'x/a'
    assert common_root([tmp_path / 'x/a/f.png']) == tmp_path / 'x/a'
    assert common_root([tmp_path / 'x/a', tmp_path / 'x/b']) == tmp_path / 'x'
    assert isinstance(common_root([tmp_path]), Path)
