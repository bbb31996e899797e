import pytest

from imagenet_rn50.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from imagenet_rn50.utils.errors import InputError


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_survives_being_written_down(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


def test_the_defaults_are_resnet_50():
    model = Recipe().model
    assert (model.depths, model.layer_type) == ((3, 4, 6, 3), "bottleneck")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epocs": 3}, "unknown key epocs = 3; the nearest valid key is epochs"),
        (
            {"optimizer": {"learning_rate": 0.1}},
            "unknown key optimizer.learning_rate = 0.1; the nearest valid key is optimizer.lr",
        ),
        ({"epochs": "3"}, "epochs = '3': input should be a valid integer"),
        ({"epochs": 0}, "epochs = 0: input should be greater than 0"),
        ({"optimizer": {"lr": -1.0}}, r"optimizer\.lr = -1\.0: input should be greater than 0"),
        ({"schedule": {"name": "onecicle"}}, r"schedule\.name = 'onecicle'"),
        ({"data": {"crop_scale": [1.0, 0.5]}}, "crop_scale must be a range"),
        ({"global_batch": 100, "micro_batch": 64}, "100 must be a multiple of micro_batch 64"),
        ({"schedule": {"name": "step"}}, "step needs them"),
        ({"schedule": {"decay_until": 4.0}}, "decay_until must be later than warmup_epochs"),
        ({"bce_threshold": 0.2}, "bce_threshold goes with loss bce"),
        ({"optimizer": {"betas": [1.0, 0.9]}}, r"betas\.0 = 1\.0: input should be less than 1"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"betas\.1 = 1\.0: input should be less than 1"),
        ({"data": {"randaugment_magnitude": 31}}, "less than or equal to 30"),
        (
            {"data": {"std": [0.2, 0.0, 0.2]}},
            r"data\.std\.1 = 0\.0: input should be greater than 0",
        ),
        ([1, 2], "is not a recipe"),
    ],
)
def test_what_is_wrong_is_named_with_its_value(content, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(content, source="my.yaml")


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001", "+1.0e-4", ".1e-3"])
def test_numbers_in_yaml_are_numbers(tmp_path, number):
    path = tmp_path / "my.yaml"
    path.write_text(f"optimizer: {{weight_decay: {number}}}\n", encoding="utf-8")
    assert load_recipe(str(path)).optimizer.weight_decay == pytest.approx(1e-4)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_recipe("digit")


@pytest.mark.parametrize("name", ["../recipes/digits", "no/such.yaml", ""])
def test_a_name_that_is_neither_recipe_nor_file_is_refused(name):
    with pytest.raises(InputError, match="there is no recipe"):
        load_recipe(name)


def test_accumulation_makes_up_the_global_batch_on_any_number_of_ranks():
    recipe = Recipe(global_batch=1024, micro_batch=128)
    assert [recipe.accumulation(world_size) for world_size in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(InputError, match="cannot be shared by 3 ranks"):
        recipe.accumulation(3)
