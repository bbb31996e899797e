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
