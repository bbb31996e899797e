import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.training.losses import mix

pytestmark = pytest.mark.numeric


def flat_pictures(num, num_classes):
    """Picture i is i everywhere, and its target is class i: so weights can be read off."""
    values = torch.arange(float(num)).view(num, 1, 1, 1)
    return values.expand(num, 3, 16, 16).clone(), torch.eye(num_classes)[:num]


@given(position=st.integers(0, 2**40), seed=st.integers(0, 1000))
def test_mixup_weighs_pictures_and_targets_alike(position, seed):
    recipe = Recipe(seed=seed, mixup_alpha=0.8)
    pictures, targets = flat_pictures(4, 4)
    pictures, targets = mix(pictures, targets, recipe, position)
    for row, opposite in enumerate((3, 2, 1, 0)):
        weight = targets[row, row].item()
        assert targets[row, opposite].item() == pytest.approx(1 - weight, abs=1e-6)
        mixed = weight * row + (1 - weight) * opposite
        torch.testing.assert_close(pictures[row], torch.full((3, 16, 16), mixed))


@given(position=st.integers(0, 2**40), seed=st.integers(0, 1000))
def test_cutmix_weighs_targets_by_the_area_that_is_left(position, seed):
    recipe = Recipe(seed=seed, cutmix_alpha=1.0)
    pictures, targets = flat_pictures(4, 4)
    pictures, targets = mix(pictures, targets, recipe, position)
    for row in range(4):
        left = (pictures[row] == row).float().mean().item()
        assert targets[row, row].item() == pytest.approx(left, abs=1e-6)
        assert set(pictures[row].unique().tolist()) <= {float(row), float(3 - row)}


def test_mixing_depends_on_seed_and_position_alone():
    recipe = Recipe(mixup_alpha=0.2, cutmix_alpha=1.0)
    plain, targets = flat_pictures(4, 4)
    first, again, other = (mix(plain, targets, recipe, p)[1] for p in (64, 64, 128))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_an_alpha_nothing_is_touched():
    pictures, targets = flat_pictures(4, 4)
    mixed, mixed_targets = mix(pictures, targets, Recipe(), 0)
    assert mixed is pictures
    assert mixed_targets is targets
