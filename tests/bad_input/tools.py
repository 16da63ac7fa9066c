"""Runs the commands in this process, and cuts from what they say all that differs between machines and versions."""

import contextlib
import io
import re
import tempfile
from typing import Callable, NamedTuple

_IN_BRACKETS = (
    'cannot be read as an image',
    'cannot be read',
    'not a readable LMDB store',
    'cannot be written',
    'tensors and plain values alone',
)
_TO_THE_END = ('is not a FinPercep-RM file: ', 'not YAML: ', 'File exists: ')
"""What follows these is another library's wording."""


class Seen(NamedTuple):
    """What a command did: exit code and what it said."""

    code: int
    text: str


def run(main: Callable[[list[str]], int], *arguments: object) -> Seen:
    """A command in this process; an exception that leaves it is not caught: that would be a traceback."""
    out = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', errors='strict')
    err = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', errors='backslashreplace')
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as stop:
            code = int(stop.code or 0)
    said = []
    for stream in (err, out):
        stream.flush()
        said.append(stream.buffer.getvalue().decode('utf-8', 'backslashreplace'))
    return Seen(code, '\n'.join(filter(None, said)).strip())


def plain(text: str, *folders: object) -> str:
    """Without folders, other libraries' wording, and what depends on the machine."""
    for folder in folders:
        text = text.replace(f'{folder}/', '').replace(str(folder), '.')
    text = re.sub(rf'{re.escape(tempfile.gettempdir())}/bad_input_\w+', 'folder', text)
    for start in _IN_BRACKETS:
        text = re.sub(rf'({start}) \([^\n]*\)', r'\1 (...)', text)
    for start in _TO_THE_END:
        text = re.sub(f'({start}).*', r'\1...', text, flags=re.DOTALL)
    text = re.sub(r'\nName \w+ is not found.*', '', text)  # BasicSR's, once a process
    return re.sub(r'\d+\.\d{6,}|\d+(?= bytes, its)|(?<=need )\d+|(?<=correlation )-?[\d.]+', '...', text)


def cell(text: str) -> str:
    """For a table in Markdown."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return '<br>'.join(lines).replace('|', '\\|')
