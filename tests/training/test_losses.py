import pytest
import torch
from torch.nn import functional

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.training.losses import smooth_targets, training_loss

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_classes_and_their_smoothed_distribution_give_the_same_loss(loss):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    recipe = Recipe(loss=loss, label_smoothing=0.2)
    soft = smooth_targets(labels, 5, 0.2)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    torch.testing.assert_close(
        training_loss(logits, labels, recipe), training_loss(logits, soft, recipe)
    )


def test_cross_entropy_is_the_formula_written_out():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    logs = logits.log_softmax(1)
    expected = -(0.9 * logs[range(6), labels] + 0.1 * logs.mean(1)).mean()
    torch.testing.assert_close(training_loss(logits, labels, Recipe(label_smoothing=0.1)), expected)


def test_bce_takes_every_class_above_the_threshold_for_present():
    torch.manual_seed(0)
    logits = torch.randn(2, 4)
    mixed = torch.tensor([[0.75, 0.25, 0.0, 0.0], [0.1, 0.0, 0.9, 0.0]])
    present = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    recipe = Recipe(loss="bce", bce_threshold=0.2)
    expected = functional.binary_cross_entropy_with_logits(logits, present)
    torch.testing.assert_close(training_loss(logits, mixed, recipe), expected)
    labels = torch.tensor([0, 2])
    alone = functional.binary_cross_entropy_with_logits(logits, torch.eye(4)[labels])
    torch.testing.assert_close(training_loss(logits, labels, recipe), alone)


def test_bce_is_the_formula_written_out():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    truth = functional.one_hot(labels, 5)
    p = logits.sigmoid()
    expected = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    recipe = Recipe(loss="bce", label_smoothing=0.0)
    torch.testing.assert_close(training_loss(logits, labels, recipe), expected)
