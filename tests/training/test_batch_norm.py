import copy

import pytest
import torch
from torch import nn

from imagenet_rn50.training.batch_norm import RunningStatistics

pytestmark = pytest.mark.numeric


def model_with_norms():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))


def buffers_after(steps, world_size):
    """Runs global batches of four micro batches on `world_size` models side by side."""
    ranks = [model_with_norms() for _ in range(world_size)]
    accumulation = 4 // world_size
    statistics = [RunningStatistics(rank, accumulation, world_size) for rank in ranks]
    for micro_batches in steps:
        for micro_step in range(accumulation):
            for number, rank in enumerate(ranks):
                statistics[number].before_micro_batch(micro_step)
                rank(micro_batches[micro_step * world_size + number])
        all_reduce(statistics)
    return [dict(rank.named_buffers()) for rank in ranks]


def all_reduce(statistics):
    """Does for models side by side what an all-reduce does for ranks."""
    contributions = []

    def contribute(flat):
        contributions.append(flat)
        return flat

    for rank in copy.deepcopy(statistics):  # a rehearsal, to learn what each rank contributes
        rank.after_step(contribute)
    for rank in statistics:
        rank.after_step(lambda _: torch.stack(contributions).sum(0))


@pytest.mark.parametrize("world_size", [2, 4])
def test_statistics_do_not_depend_on_how_a_global_batch_is_laid_out(world_size):
    torch.manual_seed(1)
    steps = [[torch.randn(5, 3, 8, 8) * 2 + 1 for _ in range(4)] for _ in range(6)]
    (alone,) = buffers_after(steps, 1)
    for rank in buffers_after(steps, world_size):
        for name in ("1.running_mean", "1.running_var", "3.running_mean", "3.running_var"):
            torch.testing.assert_close(rank[name], alone[name])


def test_one_global_batch_moves_the_statistics_by_the_mean_over_its_micro_batches():
    torch.manual_seed(2)
    micro_batches = [torch.randn(5, 4, 8, 8) + shift for shift in range(3)]
    model = nn.Sequential(nn.BatchNorm2d(4, momentum=0.1))
    statistics = RunningStatistics(model, accumulation=3, world_size=1)
    for micro_step, batch in enumerate(micro_batches):
        statistics.before_micro_batch(micro_step)
        model(batch)
    statistics.after_step(lambda flat: flat)
    expected = 0.1 * torch.stack([batch.mean((0, 2, 3)) for batch in micro_batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, expected)


def test_a_single_micro_batch_is_plain_batch_norm():
    model, plain = model_with_norms(), model_with_norms()
    plain.load_state_dict(copy.deepcopy(model.state_dict()))
    statistics = RunningStatistics(model, accumulation=1, world_size=1)
    pictures = torch.randn(5, 3, 8, 8)
    statistics.before_micro_batch(0)
    model(pictures)
    plain(pictures)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_all_micro_batches_of_a_step_are_one_graph_to_the_compiler():
    """Dynamo guards on a layer's momentum; after 8 graphs it would fall back to eager silently."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    model = model_with_norms()
    statistics = RunningStatistics(model, accumulation=4, world_size=1)
    compiled = torch.compile(model, backend=count)
    for _ in range(2):
        for micro_step in range(4):
            statistics.before_micro_batch(micro_step)
            compiled(torch.randn(5, 3, 8, 8))
        statistics.after_step(lambda flat: flat)
    assert len(graphs) == 1
