import re

import pytest

from imagenet_rn50.learning_rate import learning_rate
from imagenet_rn50.recipe import load_recipe, parse_recipe, recipe_names
from imagenet_rn50.training.schedules import draw_schedule, schedule_in_words


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_drawn_and_told(name, tmp_path):
    recipe = load_recipe(name)
    draw_schedule(recipe, name, tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    told = schedule_in_words(recipe)
    assert f"{recipe.optimizer.lr:.3g}, the peak" in told
    assert told.endswith("no warnings")


def test_a_cycle_that_does_not_fit_the_run_is_told():
    recipe = load_recipe("onecycle-plateau")
    schedule = recipe.schedule.model_copy(update={"decay_until": 250.0})
    told = schedule_in_words(recipe.model_copy(update={"schedule": schedule}))
    assert "warning: the run ends after 67 epochs, before its decay does at epoch 250" in told


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3, "schedule": {"warmup_epochs": 3.0}},
        {"epochs": 3, "schedule": {"warmup_epochs": 5.0}},
        {"epochs": 9, "schedule": {"warmup_epochs": 0.0}},
        {"epochs": 9, "schedule": {"name": "step", "warmup_epochs": 4.0, "milestones": [2.0, 7.0]}},
        {"epochs": 9, "schedule": {"decay_until": 20.0}},
        {"epochs": 9, "schedule": {"name": "constant", "plateau_patience": 1}},
    ],
)
def test_each_epoch_is_told_once_in_order_with_its_rate(changes):
    recipe = parse_recipe(changes, "x")
    told = re.findall(r"^epoch ([\d.]+): ([^,\n]+)(.*)$", schedule_in_words(recipe), re.MULTILINE)
    epochs = [float(epoch) for epoch, _, _ in told]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == recipe.epochs
    for epoch, rate, note in told:
        assert rate == f"{learning_rate(recipe, float(epoch)):.3g}"
        assert ("the peak" in note) <= (float(rate) == recipe.optimizer.lr)
