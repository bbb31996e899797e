import errno
from types import SimpleNamespace
from typing import Any

from imagenet_rn50.training.trackers import end_tracking, track


def test_a_tracker_that_cannot_write_is_left_and_named_once(capsys):
    def fail(*values, **options):
        if accelerator.trackers:
            raise OSError(errno.ENOSPC, "No space left on device")

    trackers = [SimpleNamespace(name="tensorboard")]
    accelerator: Any = SimpleNamespace(log=fail, end_training=fail, trackers=trackers)
    track(accelerator, {"loss": 1.0}, 8)
    track(accelerator, {"loss": 1.0}, 16)
    end_tracking(accelerator)
    assert capsys.readouterr().out.count("tensorboard, which cannot write: [Errno 28]") == 1
