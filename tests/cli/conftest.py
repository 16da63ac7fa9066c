"""Photos for commands that build sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos of noise, 0.png and 1.png."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 255, (80, 90, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f'{seed}.png')
    return folder
