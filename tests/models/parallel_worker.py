"""Runs several YAML files one after the other in one process group: `torchrun parallel_worker.py A.yml B.yml ...`"""

import os
import sys

import basicsr.utils.options

from finpercep_plugin import train
from finpercep_plugin.integrations.wrappers import leave_group

if __name__ == '__main__':
    files = sys.argv[1:]
    train.leave_group = lambda: None
    for file in files:
        sys.argv[1:] = ['-opt', file, '--launcher', 'pytorch']
        train.train_pipeline(os.getcwd())
        basicsr.utils.options.init_dist = lambda *given, **named: None  # the group is there
    leave_group()
