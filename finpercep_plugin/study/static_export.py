"""A study as plain files: a page a rater that opens from disk or any web space; answers are a file to send back."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from pathlib import Path

from finpercep_plugin.study.app import page_file, state_of, study_of
from finpercep_plugin.study.definition import StudyError
from finpercep_plugin.study.messages import TrialOut
from finpercep_plugin.study.session import Full, Session, image_file
from finpercep_plugin.study.store import Rater, Trial

__all__ = ['write_static']

_SCRIPTS = ('dom.js', 'view.js', 'queue.js', 'offline.js', 'trial.js', 'main.js')  # each after what it imports
_INDEX = '<!doctype html><title>Study</title><p>Please open the link that you were given.</p>\n'


def write_static(session: Session, folder: Path, raters: int) -> list[Path]:
    """Write pages for new raters, whose trials are reserved in the study.

    Args:
        session: of the study.
        folder: where to; it must be empty.
        raters: how many.

    Returns:
        The pages, one a rater.

    Raises:
        StudyError: the folder has something in it, or there are fewer seats.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StudyError(f'{folder}: not an empty folder')
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    (folder / 'index.html').write_text(_INDEX, encoding='utf-8')
    (folder / 'app.js').write_text(_bundle(), encoding='utf-8')
    (folder / 'style.css').write_text(page_file('style.css'), encoding='utf-8')
    return [_page(session, folder) for _ in range(raters)]


def _bundle() -> str:
    """The modules as one script: browsers refuse modules from disk."""
    text = '\n'.join(page_file(name) for name in _SCRIPTS)
    text = re.sub(r'^import .*\n', '', text, flags=re.MULTILINE)
    return "'use strict';\n(() => {\n" + re.sub(r'^export ', '', text, flags=re.MULTILINE) + '})();\n'


def _page(session: Session, folder: Path) -> Path:
    try:
        rater = session.join(secrets.token_urlsafe(16), offline=True)
    except Full:
        raise StudyError('the study has no seats for as many more raters') from None
    _, trials = session.pending(rater, session.length)
    state = state_of(session, rater, 0, [_trial(session, folder, trial) for trial in trials])
    plan = {'token': rater.token, 'about': study_of(session).model_dump(), 'state': state.model_dump()}
    html = page_file('index.html')
    html = html.replace('<script type="module" src="/static/main.js"></script>\n', '')
    html = html.replace('/static/style.css', 'style.css')
    text = json.dumps(plan, ensure_ascii=False).replace('<', '\\u003c')
    end = f'<script type="application/json" id="plan">{text}</script>\n<script src="app.js"></script>\n</body>'
    page = folder / f'{_name(rater)}.html'
    page.write_text(html.replace('</body>', end), encoding='utf-8')
    return page


def _name(rater: Rater) -> str:
    return f'rater_{rater.number:03d}_{rater.token}'


def _trial(session: Session, folder: Path, trial: Trial) -> TrialOut:
    width, height = session.size(trial)
    files = {role: session.image(trial, role) for role in ('lq', 'a', 'b')}
    for file in files.values():
        target = image_file(folder, file.stem)
        if not target.exists():
            shutil.copyfile(file, target)
    pictures = {role: f'images/{file.name}' for role, file in files.items()}
    practice = trial.placed.kind == 'training'
    return TrialOut(token=trial.token, practice=practice, width=width, height=height, **pictures)
