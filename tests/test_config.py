import dataclasses
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest

from finpercep_plugin.config import ConfigError, arguments, build, check_file, parse
from finpercep_plugin.registry import REWARDS, Registry


@dataclasses.dataclass(frozen=True)
class Inner:
    gain: float = 1.0
    sizes: tuple[int, int] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    mode: Literal['fast', 'slow'] = 'fast'
    inner: Inner = Inner()
    weights: Optional[str] = None
    scale: Union[int, Literal['auto']] = 'auto'
    names: list[str] = dataclasses.field(default_factory=list)
    table: dict[str, float] = dataclasses.field(default_factory=dict)
    file: Path = Path('.')
    flag: bool = False
    anything: Any = None


def problems(options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, options, '$.x')
    return caught.value.problems


def test_values_arrive_as_the_schema_says():
    got = parse(
        Outer,
        {
            'steps': 5e3,
            'mode': 'slow',
            'inner': {'gain': '1e-4', 'sizes': [3, 4]},
            'weights': 'a.pth',
            'scale': 2,
            'names': ['a'],
            'table': {'k': 1},
            'file': 'dir/x',
            'anything': [None],
        },
    )
    assert got == Outer(5000, 'slow', Inner(1e-4, (3, 4)), 'a.pth', 2, ['a'], {'k': 1.0}, Path('dir/x'), False, [None])
    assert isinstance(got.steps, int) and isinstance(got.inner.gain, float) and isinstance(got.table['k'], float)


@pytest.mark.parametrize(
    ('options', 'line'),
    [
        ({}, '$.x.steps: missing; expected int'),
        ({'steps': 1, 'stpes': 2}, "$.x.stpes: unknown key; did you mean 'steps'?"),
        ({'steps': 1.5}, '$.x.steps: expected int, got float 1.5'),
        ({'steps': True}, '$.x.steps: expected int, got bool True'),
        ({'steps': None}, '$.x.steps: expected int, got null'),
        ({'steps': 1, 'mode': 'fats'}, "$.x.mode: expected 'fast' | 'slow', got 'fats'; did you mean 'fast'?"),
        ({'steps': 1, 'inner': 3}, '$.x.inner: expected a section (mapping), got int 3'),
        ({'steps': 1, 'inner': {'gain': 'loud'}}, "$.x.inner.gain: expected float, got str 'loud'"),
        ({'steps': 1, 'inner': {'sizes': [1]}}, '$.x.inner.sizes: expected 2 values, got 1: [1]'),
        ({'steps': 1, 'inner': {'sizes': [1, 'b']}}, "$.x.inner.sizes[1]: expected int, got str 'b'"),
        ({'steps': 1, 'names': ['a', 1]}, '$.x.names[1]: expected str, got int 1'),
        ({'steps': 1, 'table': {'k': 'v'}}, "$.x.table.k: expected float, got str 'v'"),
        ({'steps': 1, 'weights': 3}, '$.x.weights: expected str, got int 3'),
        ({'steps': 1, 'scale': 'big'}, "$.x.scale: expected int or 'auto', got str 'big'"),
        ({'steps': 1, 'flag': 'yes'}, "$.x.flag: expected bool, got str 'yes'"),
    ],
)
def test_mistakes(options, line):
    assert problems(options) == [line]


def test_all_mistakes_are_reported_together():
    with pytest.raises(ConfigError, match=r'(?s)^2 problems:\n  \$\.x\.steps.*\n  \$\.x\.flag'):
        parse(Outer, {'steps': 'a', 'flag': 1}, '$.x')


def test_null_section_is_an_empty_one():
    assert parse(Inner, None) == Inner()


class Thing:
    def __init__(self, dim: int, given: object, rate: float = 0.1):
        self.dim, self.given, self.rate = dim, given, rate


def test_a_constructors_signature_is_a_schema():
    assert arguments(Thing, {'dim': 3, 'rate': '1e-2'}, '$.t', given=('given',)) == {'dim': 3, 'rate': 0.01}
    with pytest.raises(ConfigError, match=r'\$.t.given: unknown key'):
        arguments(Thing, {'dim': 3, 'given': 1}, '$.t', given=('given',))


def test_build():
    things = Registry('thing', 'THINGS', 'no_such_folder')
    things.register('Thing')(Thing)
    built = build(things, {'type': 'Thing', 'dim': 2}, '$.t', given='x')
    assert (built.dim, built.given, built.rate) == (2, 'x', 0.1)
    with pytest.raises(ConfigError, match=r"\$.t.type: no thing named 'Thin'; did you mean 'Thing'"):
        build(things, {'type': 'Thin'}, '$.t')
    with pytest.raises(ConfigError, match=r'\$.t: expected a section with `type: <thing>`, got None'):
        build(things, None, '$.t')


def test_a_class_without_a_constructor_has_no_options():
    assert arguments(REWARDS.get('Sharpness'), {}, '$.reward') == {}
    with pytest.raises(ConfigError) as caught:
        build(REWARDS, {'type': 'Sharpness', 'strength': 2, 'top': 0.1}, '$.reward')
    assert caught.value.problems == [
        f'$.reward.{key}: unknown key; there are no options' for key in ('strength', 'top')
    ]


def test_fields_inherited_from_another_module_are_resolved_there(tmp_path, monkeypatch):
    (tmp_path / 'base_schema.py').write_text(
        'from __future__ import annotations\nimport dataclasses\n\n\n@dataclasses.dataclass(frozen=True)\nclass Rate:\n    lr: float = 1.0\n\n\n'
        '@dataclasses.dataclass(frozen=True)\nclass Base:\n    rate: Rate = Rate()\n'
    )
    (tmp_path / 'derived_schema.py').write_text(
        'from __future__ import annotations\nimport dataclasses\nimport base_schema\n\n\n@dataclasses.dataclass(frozen=True)\n'
        'class Derived(base_schema.Base):\n    more: int = 0\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    import derived_schema

    assert parse(derived_schema.Derived, {'rate': {'lr': '1e-3'}}).rate.lr == 1e-3


def test_check_file(tmp_path):
    (tmp_path / 'rm_2.pth').touch()
    assert check_file(tmp_path / 'rm_2.pth', '$.rm', 'weights') == tmp_path / 'rm_2.pth'
    with pytest.raises(ConfigError, match=r"\$.rm: weights not found at .*rm_3.pth; did you mean 'rm_2.pth'"):
        check_file(tmp_path / 'rm_3.pth', '$.rm', 'weights')
    with pytest.raises(ConfigError, match=r'nothing/rm.pth$'):
        check_file(tmp_path / 'nothing/rm.pth', '$.rm', 'weights')
