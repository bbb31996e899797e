import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_rn50.data.transforms import TrainTransform, augment, augmentation_rng
from imagenet_rn50.recipe import DataRecipe
from tests.support import jpeg_bytes

pytestmark = pytest.mark.numeric

STRONG = DataRecipe(
    train_size=32, eval_size=32, auto_augment="randaugment", color_jitter=0.4, erasing=1.0
)
TRIVIAL = STRONG.model_copy(update={"auto_augment": "trivialaugment"})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 100), index=st.integers(0, 10**6))
@pytest.mark.parametrize("data", [STRONG, TRIVIAL])
def test_a_sample_is_augmented_the_same_whatever_was_drawn_before(data, seed, epoch, index):
    content = jpeg_bytes(index % 10, 40, 48)
    transform = TrainTransform(data, seed)
    torch.manual_seed(0)
    first = transform(content, epoch, index)
    torch.rand(7)
    written = torch.empty(32, 32, 3, dtype=torch.uint8).permute(2, 0, 1)
    transform(content, epoch, index, written)
    assert first.dtype == torch.uint8
    assert torch.equal(first, written)


def test_another_epoch_augments_another_way():
    transform = TrainTransform(STRONG, 0)
    content = jpeg_bytes(3, 40, 48)
    assert not torch.equal(transform(content, 0, 3), transform(content, 1, 3))


def test_the_global_generator_goes_on_as_if_nothing_had_been_drawn():
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    augment(image, STRONG, augmentation_rng(0, 0, 0))
    assert torch.equal(torch.rand(3), expected)


def test_an_erased_box_is_as_good_as_zero_for_the_model():
    data = DataRecipe(train_size=32, eval_size=32, erasing=1.0)
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    erased = augment(image, data, augmentation_rng(0, 0, 0))
    (changed,) = (erased != 255).all(0).nonzero().T.tolist()[:1]
    assert changed
    for channel, mean in zip(erased, data.mean, strict=True):
        assert set(channel.unique().tolist()) == {int(255 * mean), 255}


def randaugmented(**settings):
    """A noisy image, and what RandAugment makes of it for 200 samples."""
    torch.manual_seed(0)
    image = torch.randint(0, 200, (3, 16, 16), dtype=torch.uint8)
    data = DataRecipe(auto_augment="randaugment", **settings)
    return image, [augment(image, data, augmentation_rng(0, 0, k)) for k in range(200)]


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_randaugment_takes_each_of_two_operations_with_its_probability(probability):
    """Of 14 operations one does nothing, so 1 - (1 - 13 / 14 p)^2 of the images change."""
    image, augmented = randaugmented(randaugment_probability=probability)
    changed = sum(not torch.equal(one, image) for one in augmented) / len(augmented)
    assert changed == pytest.approx(1 - (1 - 13 / 14 * probability) ** 2, abs=0.08)


def test_randaugment_changes_pictures_the_more_the_higher_its_magnitude():
    changes = []
    for magnitude in (0, 9, 18, 30):
        image, augmented = randaugmented(randaugment_magnitude=magnitude)
        changes.append(sum((a.float() - image.float()).abs().mean().item() for a in augmented))
    assert changes == sorted(changes)
    assert changes[0] < 0.2 * changes[1]


def test_without_augmentations_the_picture_itself_comes_back():
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    assert augment(image, DataRecipe(), augmentation_rng(0, 0, 0)) is image
