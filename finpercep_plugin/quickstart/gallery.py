"""Pictures for the README, from a finished quick start: photos that ship inside scikit-image, none of them trained on."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.images import read_image
from finpercep_plugin.models.panels import map_picture, picture
from finpercep_plugin.quickstart.comparison import COLUMNS, Comparison
from finpercep_plugin.quickstart.workshop import Workshop, shipped_options
from finpercep_plugin.report.experiment.page import experiment_page, read_all
from finpercep_plugin.visual import grid

__all__ = ['PLACES', 'captioned', 'make_gallery']

SIDE = 160
PHOTO = 'astronaut.png'
PLACES = {'astronaut.png': ((168, 60), (112, 352)), 'coins.png': ((96, 72),)}
"""Left and upper edges of the crops; that there is something to see there is all that they were chosen by."""

TITLE = 22
QUALITY = 92
SCREEN = (1400, 1255)
"""Of the browser, in pixels: down to where the run's pictures begin, which are of other photos too."""


def make_gallery(quick: Path, out: Path) -> list[Path]:
    """Write `before_after.jpg`, `maps.jpg` and, where Chromium is installed, `report.png`.

    Args:
        quick: folder of a finished quick start with the photos inside scikit-image.
        out: folder of the pictures.

    Raises:
        FileNotFoundError: the quick start is not finished, or was of other photos.
    """
    about = json.loads((quick / 'quickstart.json').read_text(encoding='utf-8'))
    folder = next((Path(p).parent for p in about['photos']['held_out'] if Path(p).name == PHOTO), None)
    if folder is None:
        raise FileNotFoundError(f'{quick}: expected a quick start in which {PHOTO} of scikit-image is held out')
    shop = Workshop(quick, about['seed'], about['recipe']['size'])
    out.mkdir(parents=True, exist_ok=True)
    made = [_before_after(shop, folder, out / 'before_after.jpg'), _maps(shop, out / 'maps.jpg')]
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    return [*made, _report(quick / 'experiments' / 'refl', browser, out / 'report.png')] if browser else made


def _before_after(shop: Workshop, folder: Path, file: Path) -> Path:
    weights = {'before': shop.weights('generator'), 'after': shop.weights('refl'), 'rm': shop.weights('rm_2')}
    compare, rows = Comparison(shipped_options('diffusion_small')['generator'], weights, shop.seed), []
    for name, places in PLACES.items():
        photo = read_image(folder / name)
        for x, y in places:
            rows.append(compare(photo[y : y + SIDE, x : x + SIDE], 20_000 + len(rows)).images)
    return _save(captioned(rows, COLUMNS), file)


def _maps(shop: Workshop, file: Path, count: int = 4, factor: int = 3) -> Path:
    """The held-out samples whose true maps spread over the range, each with RM_2's map of it."""
    data = FinPercepFGRDataset({'dataroot': str(shop.data('held_out')), 'photos': 'val', 'val_photos': [f'*{PHOTO}']})
    items = sorted((data[i] for i in range(len(data))), key=lambda item: float(item['map'].mean()))
    chosen = [items[round(k * (len(items) - 1) / count)] for k in range(count, 0, -1)]
    with torch.no_grad():
        maps = FinPercepRM.from_file(shop.weights('rm_2'))(torch.stack([item['syn'] for item in chosen]))[1]
    rows = [
        [picture(item['gt']), picture(item['syn']), map_picture(found), map_picture(item['map'])]
        for item, found in zip(chosen, maps)
    ]
    large = [[np.kron(image, np.ones((factor, factor, 1), np.uint8)) for image in row] for row in rows]
    return _save(captioned(large, ('photo', 'with artifacts', 'map of RM_2', 'true map')), file)


def _report(experiment: Path, browser: str, file: Path) -> Path:
    """The top of `finpercep-report`'s page, as a browser shows it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = experiment_page(read_all([experiment]), '').write(folder / 'page.html')
        flags = '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars'
        size = f'--window-size={SCREEN[0]},{SCREEN[1]}'
        shot = [f'--screenshot={folder / "shot.png"}', f'--user-data-dir={folder / "profile"}', page.as_uri()]
        command = [browser, *flags.split(), size, '--virtual-time-budget=3000', *shot]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = Image.open(folder / 'shot.png').convert('RGB')
    small = image.resize((1000, image.height * 1000 // image.width), Image.Resampling.LANCZOS)
    small.quantize(128).save(file, optimize=True)
    return file


def captioned(rows: Sequence[Sequence[np.ndarray]], names: Sequence[str]) -> np.ndarray:
    """`visual.grid` with the names of the columns above."""
    sheet = grid(rows)
    head = Image.new('RGB', (sheet.shape[1], TITLE), 'white')
    draw, font = ImageDraw.Draw(head), ImageFont.load_default()
    for k, name in enumerate(names):
        draw.text(((k + 0.5) * (sheet.shape[1] + 4) / len(names), TITLE / 2), name, 'black', font, anchor='mm')
    return np.concatenate([np.asarray(head), sheet])


def _save(image: np.ndarray, file: Path) -> Path:
    Image.fromarray(image).save(file, quality=QUALITY, subsampling=0)
    return file
