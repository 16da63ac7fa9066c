"""Tables of methods as Markdown and LaTeX, with the protocol they were measured by."""

from __future__ import annotations

from typing import Mapping, Sequence

from finpercep_plugin.report.bootstrap import Interval
from finpercep_plugin.scoring.statistics import Comparison

__all__ = ['latex', 'markdown']

_TEX = str.maketrans(
    {c: f'\\{c}' for c in '&%$#_{}'}
    | {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
)


def markdown(
    comparison: Comparison, protocol: str, versions: Mapping[str, str], unmatched: Mapping[str, Sequence[str]]
) -> str:
    """A page: means, paired differences, what they were measured by, what was left out.

    Args:
        comparison: what to show.
        protocol: in words.
        versions: {metric: version}.
        unmatched: see `Pairing`.
    """
    names = list(comparison.columns)
    lines = [f'Protocol {protocol}. Means with 95 % bootstrap intervals over pictures; best in bold.', '']
    lines += _markdown_table(
        ['method', 'n', *map(lambda c: f'{c} {_arrow(comparison.columns[c], "↑", "↓")}'.strip(), names)]
    )
    for method in comparison.methods:
        cells = []
        for column in names:
            text = _interval(comparison.means[method][column], comparison.digits[column])
            cells.append(f'**{text}**' if comparison.best.get(column) == method else text)
        lines.append(_line([method or 'all', _count(comparison, method), *cells]))
    if comparison.differences:
        lines += ['', f'Differences from {comparison.baseline} on the same pictures.', '']
        lines += _markdown_table(['method', *names])
        for method, intervals in comparison.differences.items():
            lines.append(
                _line([method, *(_interval(intervals[column], comparison.digits[column], '+') for column in names)])
            )
    if comparison.uneven:
        lines += ['', f'Methods were scored on different pictures in: {", ".join(comparison.uneven)}.']
    lines += ['', *(f'- {metric}: `{version}`' for metric, version in versions.items())]
    lines += [
        f'- {why}: {len(listed)} ({", ".join(listed[:5])}{", ..." * (len(listed) > 5)})'
        for why, listed in unmatched.items()
    ]
    return '\n'.join(lines) + '\n'


def latex(comparison: Comparison, protocol: str, versions: Mapping[str, str]) -> str:
    """A booktabs table of means, best in bold and second underlined; differences and versions as comments.

    Args:
        comparison, protocol, versions: as of `markdown`.
    """
    names = list(comparison.columns)
    arrows = [_arrow(comparison.columns[c], '$\\uparrow$', '$\\downarrow$') for c in names]
    heads = [f'{_tex(c)} {a}'.strip() for c, a in zip(names, arrows)]
    lines = [f'% {metric}: {version}' for metric, version in versions.items()]
    for method, intervals in comparison.differences.items():
        for column in names:
            lines.append(
                f'% {method} - {comparison.baseline}, {column}: '
                + _interval(intervals[column], comparison.digits[column], '+')
            )
    lines += [
        '\\begin{table}',
        '  \\centering',
        f'  \\caption{{Protocol {_tex(protocol)}. Means over {_counts(comparison)} images.}}',
        f'  \\begin{{tabular}}{{l{"r" * len(names)}}}',
        '    \\toprule',
        f'    {" & ".join(["Method", *heads])} \\\\',
        '    \\midrule',
    ]
    for method in comparison.methods:
        cells = []
        for column in names:
            interval = comparison.means[method][column]
            text = '--' if interval is None else f'{interval.mean:.{comparison.digits[column]}f}'
            if comparison.best.get(column) == method:
                text = f'\\textbf{{{text}}}'
            elif comparison.second.get(column) == method:
                text = f'\\underline{{{text}}}'
            cells.append(text)
        lines.append(f'    {" & ".join([_tex(method or "all"), *cells])} \\\\')
    return '\n'.join([*lines, '    \\bottomrule', '  \\end{tabular}', '\\end{table}', ''])


def _interval(interval: Interval | None, digits: int, sign: str = '') -> str:
    if interval is None:
        return '–'
    return f'{interval.mean:{sign}.{digits}f} [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]'


def _count(comparison: Comparison, method: str) -> str:
    counts = {0 if i is None else i.n for i in comparison.means[method].values()}
    return '–'.join(map(str, sorted({min(counts), max(counts)})))


def _counts(comparison: Comparison) -> str:
    counts = {0 if i is None else i.n for means in comparison.means.values() for i in means.values()}
    return '--'.join(map(str, sorted({min(counts), max(counts)})))


def _arrow(higher: bool | None, up: str, down: str) -> str:
    return '' if higher is None else up if higher else down


def _markdown_table(heads: Sequence[str]) -> list[str]:
    return [_line(heads), _line(['---', *['---:'] * (len(heads) - 1)])]


def _line(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def _tex(text: str) -> str:
    return text.translate(_TEX)
