"""Where the files of a reward are: a local path, or the hub; a missing one is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from finpercep_plugin.generators.released import find_file, is_hub_id

__all__ = ['fetch', 'find_reward_file', 'find_reward_folder']


def find_reward_file(name: str | Path, what: str, kind: str = 'weights') -> Path:
    """A local file, or 'org/name/file' on the hub.

    Args:
        name: path or hub id.
        what: the reward, for messages.
        kind: the word for the file in messages.

    Raises:
        FileNotFoundError: it is not there; says which file, from where, and in which folder it was looked for.
    """
    file = Path(name).expanduser()
    if not file.exists() and is_hub_id(name) and str(name).count('/') > 1:
        org, repository, filename = str(name).split('/', 2)
        return fetch(f'{org}/{repository}', filename, what, kind)
    return find_file(file, what, kind)


def find_reward_folder(name: str | Path, what: str, files: Sequence[str | tuple[str, ...]], kind: str) -> Path:
    """A local folder, or 'org/name' on the hub.

    Args:
        name: path or hub id.
        what: the reward, for messages.
        files: that must be there; of a tuple, the first that is.
        kind: the word for the files in messages.

    Raises:
        FileNotFoundError: as `find_reward_file`.
    """
    folder = Path(name).expanduser()
    if not folder.exists() and is_hub_id(name):
        return [_fetch_one_of(str(name), names, what, kind) for names in files][-1]
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{what}: no folder {folder.absolute()} of {kind}, and {str(name)!r} is no hub id either'
        )
    for names in files:
        names = (names,) if isinstance(names, str) else names
        if not any((folder / n).is_file() for n in names):
            there = ', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'
            raise FileNotFoundError(f'{what}: {kind} {" or ".join(names)} not in {folder.absolute()}; it holds {there}')
    return folder


def fetch(repository: str, filename: str, what: str, kind: str = 'weights') -> Path:
    """A file of a hub repository, from the cache or downloaded into it.

    Raises:
        FileNotFoundError: neither; says which file, from where, and in which folder it belongs.
    """
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # the hub's own errors do not share a base class across versions
        first = (str(error).strip().splitlines() or [''])[0][:120].rstrip(' .')
        raise FileNotFoundError(
            f'{what}: {kind} {filename} of {repository} are not in {constants.HF_HUB_CACHE}, and could not be fetched '
            f'from https://huggingface.co/{repository} ({type(error).__name__}: {first}); give a local path'
        ) from error


def _fetch_one_of(repository: str, names: str | tuple[str, ...], what: str, kind: str) -> Path:
    names = (names,) if isinstance(names, str) else names
    for name in names[:-1]:
        try:
            return fetch(repository, name, what, kind).parent
        except FileNotFoundError as error:
            if 'EntryNotFoundError' not in type(error.__cause__).__name__ or 'Local' in type(error.__cause__).__name__:
                raise  # no network, no such repository: the next name would fail for the same reason
    return fetch(repository, names[-1], what, kind).parent
