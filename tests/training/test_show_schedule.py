import pytest

from imagenet_rn50.recipe_files import load_recipe, recipe_names
from imagenet_rn50.training.show_schedule import draw_schedule, schedule_in_words


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_drawn_and_told(name, tmp_path):
    recipe = load_recipe(name)
    draw_schedule(recipe, name, tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    told = schedule_in_words(recipe)
    assert f"{recipe.optimizer.lr:.3g}, the peak" in told
    assert told.endswith("nothing of it is left out")


def test_a_cycle_that_does_not_fit_the_run_is_told():
    recipe = load_recipe("onecycle-plateau")
    schedule = recipe.schedule.model_copy(update={"decay_until": 250.0})
    told = schedule_in_words(recipe.model_copy(update={"schedule": schedule}))
    assert "mind: the run ends after 67 epochs, before its decay does at epoch 250" in told
