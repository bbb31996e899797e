import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.training import lr_finder
from imagenet_rn50.training.losses import LABELS
from imagenet_rn50.training.lr_finder import Ramp, ramp, write


@given(curvature=st.floats(1.0, 1000.0), seed=st.integers(0, 1000))
def test_a_planted_optimum_is_found_within_a_factor_of_three(curvature, seed):
    """Of a quadratic with curvature c, the best rate is 1 / c, and from 2 / c on it diverges."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(10, generator=generator) / curvature**0.5

    def step(rate):
        loss = 1.0 + 0.5 * curvature * weights.square().sum().item()
        noise = 0.1 * torch.randn(10, generator=generator) / curvature**0.5  # as batches make it
        weights.sub_(rate * curvature * (weights + noise))
        return loss

    suggestion = ramp(step).suggestion
    assert 1 / 3 <= suggestion * curvature <= 3


def test_a_loss_that_is_lost_ends_the_ramp_and_what_came_before_counts():
    losses = iter([3.0, 2.0, 1.0, float("nan")])
    found = ramp(lambda rate: next(losses))
    assert found.losses == [3.0, 2.0, 1.0]
    assert found.suggestion == pytest.approx(found.rates[2] / 3)


def test_what_was_found_is_written_and_drawn(tmp_path):
    losses = iter([3.0, 2.0, 1.0, 50.0])
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
