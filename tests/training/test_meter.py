import pytest
import torch

from imagenet_rn50.training.meters import Meter


def test_a_host_is_never_more_than_two_steps_ahead_of_its_gpu(monkeypatch):
    ended, num_micro_batches = [], 2

    class Event:
        def __init__(self, blocking):
            assert blocking  # a host that spins takes a core from the loader

        def record(self):
            self.step = step

        def synchronize(self):
            ended.append(self.step)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    meter = Meter(torch.device("cpu"), 1)
    meter._device = torch.device("cuda")  # of which only events are asked for
    for step in range(6):
        for _ in range(num_micro_batches):
            with meter.waiting():
                assert ended == list(range(step - 1))
        meter.after_step([torch.tensor(1.0)] * num_micro_batches, 8, skipped=False)


def test_tflops_are_of_finished_steps_by_the_wall_clock_and_a_mean_over_ranks():
    meter = Meter(torch.device("cpu"), 2)
    for _ in range(2):
        meter.add_flops(10**12)
        meter.after_step([torch.tensor(1.0)], 8, skipped=False)
    meter.add_flops(10**12)  # of a step that is not finished
    line = meter.compute_and_reset(lambda tensor: tensor + tensor)  # as if ranks were equal
    assert line["tflops"] * line["seconds"] == pytest.approx(2)
    meter.after_step([torch.tensor(1.0)], 8, skipped=True)  # computed all the same
    line = meter.compute_and_reset(lambda tensor: tensor + tensor)
    assert line["tflops"] * line["seconds"] == pytest.approx(1)
