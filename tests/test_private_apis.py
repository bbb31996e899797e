import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor

import gradio as gr
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import functional

from imagenet_rn50.utils import private_apis
from tests.commands import ROOT


def test_private_apis_were_checked_against_the_pinned_versions():
    pins = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text("utf-8"), re.M)
    )
    for name, version in private_apis.CHECKED_AGAINST.items():
        assert pins[name] == version, f"check utils/private_apis.py against {name} {pins[name]}"


def test_a_data_loader_whose_workers_were_shut_down_can_be_read_again():
    data_loader = DataLoader(TensorDataset(torch.arange(6)), num_workers=1, persistent_workers=True)
    private_apis.shut_down_workers(data_loader)  # nothing to do
    for _ in range(2):
        assert torch.cat([batch for (batch,) in data_loader]).tolist() == list(range(6))
        private_apis.shut_down_workers(data_loader)


def test_resizing_equals_torchvisions_resize_within_one_level_with_and_without_memory():
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    expected = functional.resize(images, [20, 30], antialias=True).int()
    out = torch.empty(2, 3, 20, 30, dtype=torch.uint8)
    for resized in (
        private_apis.resize_antialiased(images, (20, 30)),
        private_apis.resize_antialiased(images, (20, 30), out=out),
    ):
        assert (resized.int() - expected).abs().max() <= 1
    assert out.data_ptr() == resized.data_ptr()


def test_tensors_are_copied_shared_and_traced_to_their_base():
    targets = [torch.zeros(2), torch.zeros(3)]
    private_apis.foreach_copy_(targets, [torch.ones(2), torch.ones(3)])
    assert torch.cat(targets).tolist() == [1.0] * 5
    assert private_apis.base_of(targets[0][:1]) is targets[0]
    assert private_apis.base_of(targets[0]) is targets[0]
    storage = private_apis.new_shared_storage(12)
    assert storage.is_shared()
    assert storage.nbytes() == 12


def test_terminated_workers_end_their_tasks():
    # A fork server may have been started with signals blocked, by a loader.
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    future = executor.submit(_sleep)
    private_apis.terminate_workers(executor)
    assert future.exception(timeout=30) is not None
    executor.shutdown()


def test_gradios_queue_sleeps_for_what_the_space_sets():
    page = gr.Blocks()
    page.queue()
    assert page._queue.sleep_when_free > 0  # as app/space/page.py expects


def _sleep():
    import time

    time.sleep(60)
