import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from imagenet_rn50.evaluation.metrics import Accuracy, accuracy_of, count, top_classes
from imagenet_rn50.evaluation.topk_accuracy import TopKAccuracy

pytestmark = pytest.mark.numeric


@given(data=st.data(), num_images=st.integers(1, 40), num_classes=st.integers(6, 12))
def test_counts_over_any_split_into_batches_equal_sklearn(data, num_images, num_classes):
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    logits = generator.normal(size=(num_images, num_classes))
    labels = generator.integers(0, num_classes, num_images)
    cuts = sorted(data.draw(st.lists(st.integers(0, num_images), max_size=4)))
    total = torch.zeros(4, dtype=torch.float64)
    for first, last in zip([0, *cuts], [*cuts, num_images], strict=True):
        total += count(torch.tensor(logits[first:last]), torch.tensor(labels[first:last]))
    accuracy = accuracy_of(total, num_images)
    for k, ours in ((1, accuracy.top1), (5, accuracy.top5)):
        theirs = top_k_accuracy_score(labels, logits, k=k, labels=range(num_classes))
        assert ours == pytest.approx(theirs)


def test_five_of_fewer_classes_are_all_of_them():
    accuracy = accuracy_of(count(torch.randn(7, 3), torch.zeros(7, dtype=torch.int64)), 7)
    assert accuracy.top5 == 1.0


def test_an_image_too_few_or_too_many_is_not_an_accuracy():
    counts = count(torch.randn(7, 3), torch.zeros(7, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="counted 7 images instead of 8"):
        accuracy_of(counts, 8)


def test_the_evaluate_metric_says_what_the_counts_say():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 10), torch.randint(0, 10, (50,))
    metric = TopKAccuracy(keep_in_memory=True)
    for first in range(0, 50, 16):
        part = slice(first, first + 16)
        predictions = top_classes(logits[part]).tolist()
        metric.add_batch(predictions=predictions, references=labels[part].tolist())
    measured = metric.compute()
    accuracy = accuracy_of(count(logits, labels), 50)
    assert measured == {"top1": accuracy.top1, "top5": accuracy.top5, "num_images": 50}


def test_a_line_of_accuracy_says_nothing_that_is_always_true_nor_rounds_to_all():
    almost = Accuracy(top1=49_999 / 50_000, top5=1.0, loss=0.1, num_images=50_000)
    assert almost.describe(1000) == "top-1 99.998%, top-5 100.00%, loss 0.1000 on 50,000 images"
    one = Accuracy(top1=0.0, top5=1.0, loss=0.1, num_images=1)
    assert one.describe(5) == "top-1 0.00%, loss 0.1000 on 1 image"
