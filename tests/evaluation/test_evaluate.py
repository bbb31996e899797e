import io
import json
import os

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch.multiprocessing.spawn import start_processes

from imagenet_rn50.cli import EvaluateArguments
from imagenet_rn50.cli import evaluate as command
from imagenet_rn50.evaluation.datasets import ShardImages
from imagenet_rn50.evaluation.evaluate import evaluate, joined_ranks
from imagenet_rn50.evaluation.load_model import load_model
from imagenet_rn50.evaluation.output import metrics_of
from imagenet_rn50.evaluation.predictions import Predictions, rows_of
from imagenet_rn50.evaluation.statistics import class_counts
from imagenet_rn50.model import build_processor, logits_of
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.utils.errors import InputError
from tests.evaluation.models import export_model, label_shards, random_model
from tests.support import free_ports

pytestmark = pytest.mark.numeric

NUM_CLASSES = 9
SIZES = [7, 1, 0, 12, 3]  # 23 images: no multiple of any batch below
# The shorter side of the images is not resized: it would round differently on another processor.
DATA = DataRecipe(train_size=16, eval_size=16, eval_resize=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Uneven shards, shards with a damaged picture, and an exported model."""
    folder = tmp_path_factory.mktemp("evaluation")
    label_shards(folder / "shards", SIZES, NUM_CLASSES)
    label_shards(folder / "damaged", SIZES, NUM_CLASSES)
    tar = folder / "damaged" / "tiny-validation-4.tar"
    content = bytearray(tar.read_bytes())
    content[512:516] = b"oops"
    tar.write_bytes(content)
    export_model(folder / "model", random_model(NUM_CLASSES), DATA)
    return folder


def images_in(folder):
    return ShardImages(LocalShards(folder), "validation")


def brute_force_logits(model, images, *, mirrored=False):
    """Logits of all images, through Pillow and the processor, one at a time."""
    processor, logits = build_processor(DATA), []
    for index in range(len(images.labels)):
        picture = Image.open(io.BytesIO(images.read(index))).convert("RGB")
        pixels = processor(picture, return_tensors="pt").pixel_values
        with torch.inference_mode():
            logits.append(logits_of(model, pixels.flip(-1) if mirrored else pixels)[0].double())
    return torch.stack(logits).numpy()


def matches(row, logits, labels):
    """Whether a row of results says what sklearn says of the logits."""
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    known = range(NUM_CLASSES)
    assert row["num_images"] == len(labels)
    assert row["top1"] == top_k_accuracy_score(labels, logits, k=1, labels=known)
    assert row["top5"] == top_k_accuracy_score(labels, logits, k=5, labels=known)
    # Logits of up to 100 in float32, whose eps is 1.2e-7: a loss is off by some 1e-5.
    assert row["loss"] == pytest.approx(losses.mean(), abs=1e-4)


def test_counts_equal_a_brute_force_reference_through_both_transforms_and_flipped(folder):
    images = images_in(folder / "shards")
    loaded = load_model(str(folder / "model"))
    evaluation = evaluate(loaded, images, flip=True, batch=5)
    plain = brute_force_logits(loaded.network, images)
    averaged = (plain + brute_force_logits(loaded.network, images, mirrored=True)) / 2
    rows = metrics_of(loaded, images, evaluation)["results"]
    assert [(row["transform"], row["flip"]) for row in rows] == [
        ("training", False),
        ("training", True),
        ("processor", False),
        ("processor", True),
    ]
    for row in rows:
        matches(row, averaged if row["flip"] else plain, images.labels)
    assert rows[0]["loss"] != pytest.approx(rows[1]["loss"], abs=1e-3)
    assert rows[0]["top1"] not in {0.0, 1.0}

    matrix = confusion_matrix(images.labels, plain.argmax(1), labels=range(NUM_CLASSES))
    counted = class_counts(images.labels, evaluation.predictions.top)
    assert [row.top1 for row in counted] == [matrix[row.label, row.label] for row in counted]


def on_rank(rank, folder, ports):
    """What each of three processes does: evaluate on three ranks, on two, then meet an error.

    At last two of them are told to by the command, as under a launcher.
    """
    torch.set_num_threads(1)
    loaded = load_model(str(folder / "model"))
    for world_size, port in zip((3, 2, 2), ports[:3], strict=True):
        if rank >= world_size:
            continue
        AcceleratorState._reset_state(True)
        os.environ |= {"WORLD_SIZE": str(world_size), "RANK": str(rank), "OMP_NUM_THREADS": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        is_last = port == ports[2]
        images = images_in(folder / ("damaged" if is_last else "shards"))
        with joined_ranks():
            try:
                evaluation = evaluate(loaded, images, batch=5, num_workers=rank % 2)
                answer = metrics_of(loaded, images, evaluation)["results"]
            except InputError as error:
                answer = str(error)
        name = "damaged" if is_last else str(world_size)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(answer), encoding="utf-8")
    if rank < 2:
        AcceleratorState._reset_state(True)
        os.environ["MASTER_PORT"] = str(ports[3])
        shards, out = str(folder / "shards"), folder / f"told-{rank}"
        model = str(folder / "model")
        command(EvaluateArguments(model, shards=shards, batch=5, workers=0, out=out))


def test_more_ranks_than_gpus_are_refused_before_they_join(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(InputError, match="--num_processes"), joined_ranks():
        pass


@pytest.mark.multiprocess
def test_two_and_three_ranks_count_what_one_counts_and_all_raise_what_one_meets(folder):
    ports = free_ports(4)
    # Forked as loader workers are: what is imported already need not be imported three times.
    start_processes(on_rank, (folder, ports), nprocs=3, start_method="fork")
    images, loaded = images_in(folder / "shards"), load_model(str(folder / "model"))
    alone = evaluate(loaded, images, batch=5)
    expected = metrics_of(loaded, images, alone)["results"]
    assert [row["num_images"] for row in expected] == [sum(SIZES)] * 2
    for world_size in (2, 3):
        for rank in range(world_size):
            answer = json.loads((folder / f"{world_size}-{rank}.json").read_text())
            assert answer == expected
    metrics = json.loads((folder / "told-0" / "metrics.json").read_text())
    assert metrics["results"] == expected
    assert not (folder / "told-1").exists()  # one rank writes for all
    for rank in range(2):
        assert "sample sample_00020" in json.loads((folder / f"damaged-{rank}.json").read_text())


def table_of(num_images):
    torch.manual_seed(3)
    return rows_of(torch.randn(num_images, 7), torch.randint(0, 7, (num_images,)))


def test_an_image_that_was_counted_twice_or_never_is_an_error():
    table = table_of(6)
    assert len(Predictions.of(table).top) == 6
    for times in (0, 2):
        wrong = table.clone()
        wrong[4] *= times
        with pytest.raises(RuntimeError, match=f"image 4 was counted {times} times"):
            Predictions.of(wrong)


def test_a_model_that_diverged_is_named(folder):
    loaded = load_model(str(folder / "model"))
    with torch.no_grad():
        loaded.network.get_parameter("classifier.1.bias").fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        evaluate(loaded, images_in(folder / "shards"))


def test_a_split_without_images_is_named(folder, tmp_path):
    label_shards(tmp_path / "empty", [0], NUM_CLASSES)
    with pytest.raises(InputError, match="validation holds no images"):
        evaluate(load_model(str(folder / "model")), images_in(tmp_path / "empty"))


def test_one_transform_can_be_asked_for(folder):
    loaded = load_model(str(folder / "model"))
    images = images_in(folder / "shards")
    for name in ("training", "processor"):
        evaluation = evaluate(loaded, images, transform=name)
        assert [row.transform for row in evaluation.results] == [name]
