import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.training import lr_finder
from imagenet_rn50.training.losses import LABELS
from imagenet_rn50.training.lr_finder import Ramp, ramp, write


@given(curvature=st.floats(1.0, 1000.0), seed=st.integers(0, 1000))
def test_a_planted_optimum_is_found_within_a_factor_of_two(curvature, seed):
    """Of a quadratic with curvature c, the best rate is 1 / c, and from 2 / c on it diverges."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(10, generator=generator) / curvature**0.5

    def step(rate):
        loss = 1.0 + 0.5 * curvature * weights.square().sum().item()
        noise = 0.1 * torch.randn(10, generator=generator) / curvature**0.5  # as batches make it
        weights.sub_(rate * curvature * (weights + noise))
        return loss

    suggestion = ramp(step).suggestion
    assert 1 / 2 <= suggestion * curvature <= 2


def test_a_loss_that_is_lost_ends_the_ramp_and_what_came_before_counts():
    losses = iter([3.0, 2.0, 1.0, float("nan")])
    found = ramp(lambda rate: next(losses))
    assert found.losses == [3.0, 2.0, 1.0]
    assert found.suggestion == pytest.approx(found.rates[2] / 2)


def test_the_first_divergence_ends_the_ramp_though_the_loss_would_fall_lower_after_it():
    # The smoothed loss of the digits: a valley at 0.6, a rise, and a lower one at 4.
    noise = itertools.cycle([0.01, -0.01, 0.0])
    rates, losses = [1e-5, 1e-3, 0.03, 0.6, 1.4, 4.0], [2.33, 2.32, 2.1, 1.5, 2.4, 1.1]

    def loss_at(rate):
        return float(np.interp(np.log(rate), np.log(rates), losses)) + next(noise)

    found = ramp(loss_at)
    assert found.diverged_at is not None
    assert 0.6 < found.diverged_at < 2
    assert 0.6 / 3 < found.suggestion < 0.4


def test_batches_that_differ_are_no_divergence_and_a_ramp_without_one_says_so():
    rng = np.random.default_rng(0)
    found = ramp(lambda rate: 2.3 + 0.1 * rng.standard_normal() - 0.1 * np.log10(rate / 1e-5))
    assert found.diverged_at is None
    assert len(found.rates) == lr_finder.NUM_STEPS


def test_what_was_found_is_written_and_drawn(tmp_path):
    losses = iter([3.0, 2.0, 1.0, float("nan")])
    found = ramp(lambda rate: next(losses))
    table, plot = write(found, tmp_path, loss=LABELS["cross_entropy"])
    assert json.loads(table.read_text())["losses"] == found.losses
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_plot_names_the_loss_that_was_measured(loss, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(lr_finder, "save_figure", lambda figure, path: figures.append(figure))
    write(Ramp([0.1, 0.2], [2.0, 1.0], [2.0, 1.0], 0.1), tmp_path, loss=LABELS[loss])
    [axes] = figures[0].axes
    assert axes.get_ylabel().startswith("binary cross-entropy" if loss == "bce" else "cross-")
