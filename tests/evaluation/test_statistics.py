import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from imagenet_rn50.evaluation import statistics
from imagenet_rn50.evaluation.statistics import (
    NUM_BINS,
    calibration,
    class_counts,
    confusions,
    wilson,
)

pytestmark = pytest.mark.numeric


@given(data=st.data(), num_images=st.integers(1, 60_000))
def test_intervals_equal_scipys_wilson_intervals(data, num_images):
    hits = data.draw(st.integers(0, num_images))
    theirs = binomtest(hits, num_images).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(hits, num_images) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_an_interval_of_all_or_none_reaches_the_end_and_is_not_empty():
    assert wilson(0, 9).low == 0
    assert wilson(0, 9).high > 0
    assert wilson(9, 9).low < 1
    assert wilson(9, 9).high == 1


def brute_force_ece(confidences, right, num_bins):
    total = 0.0
    for m in range(1, num_bins + 1):
        inside = [
            i
            for i, c in enumerate(confidences)
            if (m - 1) / num_bins < c <= m / num_bins or (m == 1 and c == 0)
        ]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


# Floats anywhere, and those at the very edges of bins.
CONFIDENCE = st.floats(0, 1) | st.integers(0, NUM_BINS).map(lambda m: m / NUM_BINS)


@given(st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_equals_its_formula(pairs):
    confidences, right = (list(column) for column in zip(*pairs, strict=True))
    ours = calibration(np.array(confidences), np.array(right))
    assert ours.num_images.sum() == len(pairs)
    assert ours.ece == pytest.approx(brute_force_ece(confidences, right, NUM_BINS), abs=1e-12)


@given(data=st.data(), num_classes=st.integers(2, 7), num_images=st.integers(1, 80))
def test_classes_and_confusions_are_those_of_sklearns_matrix(data, num_classes, num_images):
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    labels = draws.integers(0, num_classes, num_images)
    top = np.array([draws.permutation(num_classes)[:5] for _ in range(num_images)])
    matrix = confusion_matrix(labels, top[:, 0], labels=range(num_classes))
    off_diagonal = matrix - np.diag(np.diag(matrix))

    counted = class_counts(labels, top)
    assert [row.label for row in counted] == sorted(set(labels.tolist()))
    for row in counted:
        assert row.num_images == matrix[row.label].sum()
        assert row.top1 == matrix[row.label, row.label]
        assert row.top5 == (top[labels == row.label] == row.label).any(1).sum()
        assert row.count == off_diagonal[row.label].max()
        if row.most_confused_with is not None:
            assert off_diagonal[row.label, row.most_confused_with] == row.count

    pairs = confusions(labels, top[:, 0], limit=100)
    assert {(p.target, p.named): p.count for p in pairs} == {
        (int(t), int(n)): int(off_diagonal[t, n]) for t, n in np.argwhere(off_diagonal)
    }
    assert [p.count for p in pairs] == sorted((p.count for p in pairs), reverse=True)
    assert confusions(labels, top[:, 0], limit=2) == pairs[:2]


@given(data=st.data(), num_classes=st.integers(2, 12))
def test_a_confusion_matrix_equals_scikit_learns(data, num_classes):
    classes = np.sort(np.random.default_rng(num_classes).permutation(50)[:num_classes])
    drawn = st.lists(st.sampled_from(classes.tolist()), min_size=8, max_size=8)
    labels, named = np.array(data.draw(drawn)), np.array(data.draw(drawn))
    theirs = confusion_matrix(labels, named, labels=classes)
    assert statistics.confusion_matrix(labels, named, classes).tolist() == theirs.tolist()
