import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.learning_rate import Plateau, learning_rate
from imagenet_rn50.recipe import OptimizerRecipe, Recipe, ScheduleRecipe, load_recipe, recipe_names
from imagenet_rn50.training.schedules import schedule_warnings


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


def test_steps_multiply_the_rate_at_each_milestone():
    schedule = ScheduleRecipe(name="step", warmup_epochs=0.0, milestones=(3.0, 6.0), gamma=0.1)
    recipe = Recipe(epochs=9, optimizer=OptimizerRecipe(lr=0.1), schedule=schedule)
    rates = [learning_rate(recipe, epoch) for epoch in (0, 2.99, 3, 5.99, 6, 9)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def plateau_recipe(patience=2):
    schedule = ScheduleRecipe(
        name="constant", warmup_epochs=0.0, plateau_patience=patience, plateau_factor=0.5
    )
    return Recipe(epochs=100, optimizer=OptimizerRecipe(lr=0.4), schedule=schedule)


@given(losses=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=40), patience=st.integers(1, 4))
def test_the_plateau_rule_is_that_of_torch(losses, patience):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=1e-4, eps=0
    )
    recipe = plateau_recipe(patience)
    plateau = Plateau(recipe)
    for epoch, loss in enumerate(losses, start=1):
        theirs.step(loss)
        plateau.after_validation(epoch, loss)
        rate = learning_rate(recipe, epoch, plateau.num_cuts)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])


def test_a_plateau_that_was_saved_goes_on_where_it_stood():
    straight, resumed = Plateau(plateau_recipe()), Plateau(plateau_recipe())
    losses = [1.0, 0.9, 0.95, 0.91, 0.92, 0.93, 0.94, 0.9]
    for epoch, loss in enumerate(losses[:4]):
        straight.after_validation(epoch, loss)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for epoch, loss in enumerate(losses[4:]):
        assert straight.after_validation(epoch, loss) == resumed.after_validation(epoch, loss)
    assert straight.num_cuts == resumed.num_cuts > 0


def test_a_plateau_before_the_end_of_the_decay_is_no_plateau():
    schedule = ScheduleRecipe(warmup_epochs=1.0, decay_until=10.0, plateau_patience=1)
    plateau = Plateau(Recipe(epochs=20, schedule=schedule))
    assert not any(plateau.after_validation(epoch, 1.0) for epoch in range(10))
    assert any(plateau.after_validation(epoch, 1.0) for epoch in range(10, 20))


def test_a_run_that_stops_before_its_decay_is_said_so_in_words():
    # The run by hand: a OneCycle over 250 epochs, stopped at 67.
    schedule = ScheduleRecipe(warmup_epochs=75.0, decay_until=250.0)
    (warning,) = schedule_warnings(Recipe(epochs=67, schedule=schedule))
    assert "before its peak" in warning
    schedule = ScheduleRecipe(warmup_epochs=10.0, decay_until=250.0)
    (warning,) = schedule_warnings(Recipe(epochs=67, schedule=schedule))
    assert "before its decay does at epoch 250" in warning
    assert list(schedule_warnings(Recipe())) == []


@pytest.mark.parametrize("name", recipe_names())
def test_no_shipped_recipe_leaves_a_part_of_its_schedule_out(name):
    assert list(schedule_warnings(load_recipe(name))) == []


def scheduled(epochs, **schedule):
    return Recipe(
        epochs=epochs, optimizer=OptimizerRecipe(lr=0.3), schedule=ScheduleRecipe(**schedule)
    )


def test_a_run_that_ends_with_its_warmup_never_falls_but_has_its_peak():
    (warning,) = schedule_warnings(scheduled(3, warmup_epochs=3.0))
    assert "before" not in warning
    assert "never decays" in warning
    # A run that never moves the rate leaves nothing out.
    assert list(schedule_warnings(scheduled(3, name="constant", warmup_epochs=3.0))) == []
    (warning,) = schedule_warnings(scheduled(3, warmup_epochs=5.0, start_factor=1.0))
    assert "before its peak" not in warning


def test_the_rate_at_which_a_run_stops_is_not_told_as_the_peak():
    (warning,) = schedule_warnings(scheduled(300, warmup_epochs=300.1, name="linear"))
    assert "99.97%" in warning
    (warning,) = schedule_warnings(scheduled(300, warmup_epochs=5.0, decay_until=300.2))
    assert " 0.00%" not in warning


def test_a_milestone_within_the_warmup_costs_the_peak():
    (warning,) = schedule_warnings(
        scheduled(9, name="step", warmup_epochs=3.0, milestones=(3.0, 6.0))
    )
    assert "never reaches its peak" in warning
    assert (
        list(schedule_warnings(scheduled(9, name="step", warmup_epochs=3.0, milestones=(4.0,))))
        == []
    )


@pytest.mark.parametrize(("patience", "acts"), [(1, True), (2, True), (3, False), (8, False)])
def test_a_plateau_rule_that_cannot_act_is_said_so(patience, acts):
    recipe = scheduled(9, warmup_epochs=1.0, decay_until=4.5, plateau_patience=patience)
    plateau = Plateau(recipe)
    for epoch in range(1, 9):  # the last evaluation comes too late
        plateau.after_validation(epoch, loss=1.0)
    assert (plateau.num_cuts > 0) == acts
    assert any("never acts" in warning for warning in schedule_warnings(recipe)) == (not acts)


@pytest.mark.parametrize(("num_train", "warns"), [(1437, False), (1056, True), (1, True)])
def test_a_run_of_few_optimizer_steps_warns(num_train, warns):
    recipe = load_recipe("digits")  # 12 epochs, 128 images a step
    found = list(schedule_warnings(recipe, num_train))
    assert any("optimizer step" in warning for warning in found) == warns
    assert list(schedule_warnings(recipe)) == []


def test_a_plateau_that_has_seen_no_validation_is_saved_as_json():
    recipe = scheduled(9, plateau_patience=1)
    state = json.loads(json.dumps(Plateau(recipe).state_dict(), allow_nan=False))
    restored = Plateau(recipe)
    restored.load_state_dict(state)
    assert restored.state_dict() == Plateau(recipe).state_dict()
    assert not restored.after_validation(9, loss=1e9)
