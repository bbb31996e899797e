import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.recipe import OptimizerRecipe, Recipe, ScheduleRecipe
from imagenet_rn50.training.schedules import learning_rate


def recipe_of(name, *, epochs=10, warmup=3.0, lr=0.4, start=0.04, end=4e-6):
    schedule = ScheduleRecipe(name=name, warmup_epochs=warmup, start_factor=start, end_factor=end)
    return Recipe(epochs=epochs, optimizer=OptimizerRecipe(lr=lr), schedule=schedule)


def test_onecycle_is_that_of_torch_at_every_step():
    steps = 100
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.4, total_steps=steps + 1, pct_start=0.31, cycle_momentum=False
    )
    # Torch warms up for pct_start * total_steps - 1 steps and ends at the last one.
    warmup = (0.31 * (steps + 1) - 1) / steps * 10
    ours = recipe_of("onecycle", warmup=warmup)
    for step in range(steps + 1):
        assert learning_rate(ours, 10 * step / steps) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        if step < steps:
            theirs.step()


@given(epoch=st.floats(0, 10))
def test_linear_and_cosine_follow_their_closed_forms(epoch):
    warm = 0.4 * (0.04 + 0.96 * epoch / 3)
    down = (epoch - 3) / 7
    linear = warm if epoch < 3 else 0.4 + down * (0.4 * 4e-6 - 0.4)
    cosine = warm if epoch < 3 else 0.4 * (4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * down)) / 2)
    assert learning_rate(recipe_of("linear"), epoch) == pytest.approx(linear)
    assert learning_rate(recipe_of("cosine"), epoch) == pytest.approx(cosine)


@pytest.mark.parametrize("name", ["onecycle", "cosine", "linear"])
def test_without_warm_up_the_run_starts_at_its_peak(name):
    assert learning_rate(recipe_of(name, warmup=0.0), 0.0) == pytest.approx(0.4)
