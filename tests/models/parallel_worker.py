"""Runs several YAML files one after the other in one process group: `torchrun parallel_worker.py A.yml B.yml ...`

In a run of a name that begins with 'spoilt', the second process's loss of iteration 3 is not a number.
"""

import math
import os
import sys

import basicsr.utils.options

from finpercep_plugin import train
from finpercep_plugin.integrations.wrappers import leave_group
from finpercep_plugin.models.diffusion_model import FinPercepDiffusionModel

healthy = FinPercepDiffusionModel.losses


def losses(self, current_iter):
    loss, terms = healthy(self, current_iter)
    spoilt = self.opt['name'].startswith('spoilt') and self.opt['rank'] == 1 and current_iter == 3
    return loss * math.nan if spoilt else loss, terms


if __name__ == '__main__':
    files, FinPercepDiffusionModel.losses = sys.argv[1:], losses
    train.leave_group = lambda: None
    for file in files:
        sys.argv[1:] = ['-opt', file, '--launcher', 'pytorch']
        train.train_pipeline(os.getcwd())
        basicsr.utils.options.init_dist = lambda *given, **named: None  # the group is there
    leave_group()
