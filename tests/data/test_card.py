import dataclasses
import json
import logging

import pytest
import yaml

from finpercep_plugin.data.card import NO_LICENCE, fgr_card, preference_card, versions, write_card
from finpercep_plugin.data.fgr_builder import build

MADE_WITH = {'finpercep_plugin': '1.0', 'numpy': '2.0'}


@pytest.fixture
def meta(fgr):
    return json.loads((fgr / 'meta.json').read_text())


def front(card):
    _, text, rest = card.split('---\n', 2)
    return yaml.safe_load(text), rest


def test_the_front_matter_is_hugging_faces(meta):
    head, body = front(fgr_card(meta, MADE_WITH))
    assert head['license'] == 'unknown'
    assert head['size_categories'] == ['n<1K']
    assert head['task_categories'] == ['image-to-image']
    assert body.startswith('\n# FGR set: 12 samples, 32x32 pixels, x4\n')


def test_it_tells_what_meta_tells(meta):
    card = fgr_card(meta, MADE_WITH)
    assert '| samples | 12 |' in card and '| seed | 3 |' in card and '| photos | 6 of 6 |' in card
    assert f'pixel {meta["p99"]["pixel"]:.6f}, feature {meta["p99"]["feature"]:.6f}' in card
    assert '| classical | 12 |' in card
    assert '| numpy | 2.0 |' in card
    assert '--photos PHOTOS --out SET --count 12 --alpha 0.5' in card
    assert NO_LICENCE in card


def test_its_build_yml_builds_the_set_again(meta, options, tmp_path):
    from finpercep_plugin.config import parse
    from finpercep_plugin.data.fgr_options import BuildOptions, identity

    last = fgr_card(meta, MADE_WITH).rsplit('```yaml\n', 1)[1].split('```')[0]
    again = parse(BuildOptions, yaml.safe_load(last))
    assert identity(again) == identity(options)


def test_weights_are_named_by_file_and_digest(meta):
    meta['options']['producers'].append(
        {'type': 'basicsr', 'weight': 2.0, 'weights': 'net.pth sha256:0123456789abcdef'}
    )
    meta['produced_by']['basicsr'] = 5
    card = fgr_card(meta, MADE_WITH)
    assert 'net.pth sha256:0123456789abcdef' in card and '| basicsr | 5 |' in card


def test_skipped_photos_shards_and_folders(meta):
    meta |= {'skipped': [['a|b.png', 'no\nsuch file']] + [[f'{n}.png', 'x'] for n in range(30)], 'shard': [1, 3]}
    meta['photos'] = [['x/a.png', 1], ['x/b.png', 2], ['y/a.png', 3]] + [[f'{n}.png', 4] for n in range(3)]
    card = fgr_card(meta, MADE_WITH)
    assert '- `a\\|b.png`: no such file\n' in card and '- and 11 more, in meta.json' in card
    assert '| x | 2 |\n| y | 1 |' in card
    assert '| shard | 1 of 3 (numbers from 0) of 12 samples |' in card


@pytest.mark.parametrize(
    ('licence', 'head'),
    [
        ('cc-by-4.0', {'license': 'cc-by-4.0'}),
        ('Research only, ask us', {'license': 'other', 'license_name': 'see-below'}),
    ],
)
def test_licences(meta, licence, head):
    card = fgr_card({**meta, 'licences': {'licence': licence, 'source_licence': 'CC0.'}}, MADE_WITH)
    found, body = front(card)
    assert {k: v for k, v in found.items() if k.startswith('license')} == head
    assert f'Of this set: {licence}.' in body and 'Of the photos that it is made of: CC0.\n' in body
    assert NO_LICENCE not in card


def test_preferences(preferences):
    meta = json.loads((preferences / 'meta.json').read_text())
    card = preference_card(meta, MADE_WITH)
    head, _ = front(card)
    assert head['tags'][1] == 'preferences'
    assert '| records | 5 |\n| pairs | 16 |\n| records of ties alone | 1 |' in card
    assert 'best: 2' in card
    assert (preferences / 'README.md').read_text().startswith(preference_card(meta, versions()))


def test_equal_builds_have_equal_cards_without_paths_or_dates(options, tmp_path):
    cards = []
    for name in ('a', 'b'):
        build(dataclasses.replace(options, out=str(tmp_path / name), count=2, licence='cc0-1.0'))
        cards.append((tmp_path / name / 'README.md').read_text())
    assert cards[0] == cards[1]
    assert str(tmp_path) not in cards[0] and options.photos[0] not in cards[0]
    assert 'license: cc0-1.0' in cards[0]


def test_a_grown_set_has_a_new_card_but_an_edited_one_stays(options, tmp_path, caplog):
    grown = dataclasses.replace(options, out=str(tmp_path / 'set'), count=2)
    build(grown)
    build(dataclasses.replace(grown, count=3))
    path = tmp_path / 'set/README.md'
    assert '# FGR set: 3 samples' in path.read_text()
    path.write_text(path.read_text().replace('license: unknown', 'license: mit'))
    with caplog.at_level(logging.WARNING):
        build(dataclasses.replace(grown, count=4))
    assert '# FGR set: 3 samples' in path.read_text() and 'README.md has been edited and stays' in caplog.text
    path.unlink()
    write_card(tmp_path / 'set', json.loads((tmp_path / 'set/meta.json').read_text()))
    assert '# FGR set: 4 samples' in path.read_text()


def test_versions_name_what_computes():
    assert versions().keys() >= {'finpercep_plugin', 'numpy', 'opencv', 'torch'}
