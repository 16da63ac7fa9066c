"""Random crops of plain photos with lq made on the fly: training pairs for generators, without an FGR set."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Literal, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finpercep_plugin.config import parse
from finpercep_plugin.data.degradation import DegradationOptions, degrade
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.fgr_sample import PhotoCache, draw_crop, photo_list
from finpercep_plugin.data.loading import LoaderOptions, choose_photos, local_rng, to_tensor
from finpercep_plugin.registry import DATASETS
from finpercep_plugin.rng import keyed_numpy

__all__ = ['FinPercepPhotoDataset', 'PhotoOptions']

logger = logging.getLogger(__name__)
