"""The largest micro batch that fits, found by real child processes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagenet_rn50.recipe import Recipe, load_recipe
from imagenet_rn50.tools.micro_batch import Setup, Trial, bisect_trials, candidates, run_trials
from imagenet_rn50.utils.errors import InputError
from tests.support import write_recipe

ROOT = Path(__file__).parents[2]
MIB = 2**20

# One image takes about 23 MiB: 64 channels of 192 x 192 px, saved and used by a few operators.
LARGE = """\
epochs: 2
global_batch: 512
micro_batch: 4
ema_decay: 0.9
mixup_alpha: 0.2
model: {embedding_size: 64, hidden_sizes: [64], depths: [2], layer_type: basic}
data: {train_size: 32, final_size: 192, growth: [0, 1], eval_size: 32, eval_resize: 36}
"""


@pytest.mark.parametrize("largest", [0, 1, 2, 5, 16, 48, 1000])
def test_bisection_finds_the_largest_size_that_fits(largest):
    sizes = candidates(48)
    assert sizes == [2, 3, 4, 6, 8, 12, 16, 24, 48]
    trials = bisect_trials(
        sizes, lambda size: Trial(size, "fits" if size <= largest else "out of memory")
    )
    fitting = [trial.micro_batch for trial in trials if trial.outcome == "fits"]
    assert max(fitting, default=None) == max((s for s in sizes if s <= largest), default=None)
    assert fitting == sorted(fitting)  # so a process that runs them has the peak of its last one
    assert len(trials) <= 4
