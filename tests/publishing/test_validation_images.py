"""Validation images in an export: examples for the Space, and the threshold of its notes."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from imagenet_rn50.classes import Classes
from imagenet_rn50.model import load_exported, logits_of
from imagenet_rn50.publishing.calibration import fit_temperature, maximum_softmax, threshold_of
from imagenet_rn50.publishing.examples import require_publishable, small_jpeg
from imagenet_rn50.publishing.export import ExportOptions, convert, export
from imagenet_rn50.publishing.validation_images import ValidationImages
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.utils.errors import InputError
from tests.publishing.runs import make_run, save_checkpoint, thousand_classes
from tests.support import CLASSES, write_shards

NUM_VALIDATION = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many-shards")
    write_shards(folder, train=[4], validation=[25, 15])
    return LocalShards(folder)


@pytest.fixture
def run(tmp_path, store):
    run = make_run(tmp_path, store.folder)
    save_checkpoint(run, 24, 0.5, is_best=True)
    return run.path


@pytest.fixture(scope="module")
def with_images(tmp_path_factory, store):
    """An export with its shards, which no test changes."""
    folder = tmp_path_factory.mktemp("with-images")
    run = make_run(folder, store.folder)
    save_checkpoint(run, 24, 0.5, is_best=True)
    return exported(run.path, folder / "out", store)


def exported(run, out, store, **options):
    export(run, out, options=ExportOptions(shards=store, **options))
    return out


def listed(out):
    return json.loads((out / "examples.json").read_text())


@pytest.mark.parametrize("number", [1, 2, 3, 6, 7, 40])
def test_examples_are_validation_images_spread_evenly_over_the_classes(store, number):
    images = ValidationImages.of(store, None)
    chosen = images.choose(number, "examples")
    assert len(set(chosen.tolist())) == number
    counts = Counter(images.split.labels[chosen].tolist())
    assert max(counts.values()) - min(counts[label] for label in range(3)) <= 1
    assert np.array_equal(images.choose(number, "examples"), chosen)


def test_classes_with_few_images_give_all_of_them(store):
    images = ValidationImages.of(store, None)
    assert sorted(images.choose(10**6, "examples").tolist()) == list(range(NUM_VALIDATION))


def test_an_export_has_six_small_examples_named_by_class(with_images, store):
    out = with_images
    source = listed(out)
    assert (source["dataset"], source["split"]) == ("tiny", "validation")
    assert source["fingerprint"] == Manifest.fingerprint_of(store.folder)
    files = sorted(path.name for path in (out / "examples").iterdir())
    assert files == [image["file"] for image in source["images"]]
    assert [file.removesuffix(".jpg") for file in files] == [
        *("1 first", "2 first", "3 second", "4 second", "5 third", "6 third")
    ]
    images = ValidationImages.of(store, None)
    for image in source["images"]:
        index = images.split.keys.tolist().index(image["key"].encode())
        assert CLASSES.labels[images.split.labels[index]] == image["class"]
        [content] = images.read(np.array([index]))
        original, example = (
            np.asarray(Image.open(file).convert("RGB"), dtype=float)
            for file in (io.BytesIO(content), out / "examples" / image["file"])
        )
        assert np.abs(original - example).mean() < 3


def test_examples_are_upright_without_metadata_and_at_most_512_px():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "the camera"
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 600)).save(buffer, format="JPEG", exif=exif, comment=b"private")
    with Image.open(io.BytesIO(small_jpeg(buffer.getvalue()))) as image:
        assert image.size == (256, 512)
        assert not image.getexif()
        assert "comment" not in image.info


@pytest.mark.parametrize("number", [0, 2])
def test_the_number_of_examples_can_be_chosen(run, store, tmp_path, number):
    out = exported(run, tmp_path / "out", store, examples=number)
    assert len(list(out.glob("examples/*"))) == number
    assert (out / "examples.json").exists() is (number > 0)
    assert (out / "calibration.json").exists()


def test_exporting_again_replaces_its_examples_and_keeps_those_of_people(run, store, tmp_path):
    out = exported(run, tmp_path / "out", store, examples=3)
    (out / "examples" / "cat.jpg").write_bytes(b"a cat")
    exported(run, out, store, examples=1)
    assert sorted(path.name for path in (out / "examples").iterdir()) == ["1 first.jpg", "cat.jpg"]
    exported(run, out, store, examples=0)
    assert [path.name for path in (out / "examples").iterdir()] == ["cat.jpg"]
    (out / "examples" / "1 first.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"1 first\.jpg was not written by an export"):
        exported(run, out, store, examples=1)
    assert (out / "examples" / "1 first.jpg").read_bytes() == b"precious"


def test_shards_of_another_run_give_no_examples_and_no_threshold(run, shards, tmp_path, capsys):
    other = LocalShards(shards)
    out = exported(run, tmp_path / "out", other)
    assert not (out / "examples").exists()
    assert not (out / "calibration.json").exists()
    assert "not the shards of the run" in capsys.readouterr().out
    with pytest.raises(InputError, match="not the shards of the run"):
        exported(run, tmp_path / "other", other, examples=2)
    with pytest.raises(InputError, match="--shards SHARDS"):
        exported(run, tmp_path / "other", None, examples=2)
    with pytest.raises(InputError, match="--examples must be at least 0"):
        exported(run, tmp_path / "other", None, examples=-1)


def as_data_set(images, **changes):
    values = {"dataset": "tiny", "options": {}} | changes
    classes = values.pop("classes", images.classes)
    manifest = Manifest(splits=images.manifest.splits, **values)
    return ValidationImages(images.store, manifest, images.split, classes, images.fingerprint)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "my-ImageNet-subset"},
        {"options": {"subset": {}, "parent": {"dataset": "ILSVRC2012", "options": {}}}},
        {"classes": Classes(("n00000001", "n01440764"), ("first", "tench"))},
        {"classes": thousand_classes()},
    ],
)
def test_images_of_imagenet_are_never_examples(store, changes):
    images = ValidationImages.of(store, None)
    require_publishable(images)
    with pytest.raises(InputError, match="must not be published"):
        require_publishable(as_data_set(images, **changes))


def test_the_threshold_flags_a_twentieth_of_the_validation_images(with_images, store):
    out = with_images
    content = json.loads((out / "calibration.json").read_text())
    assert content["num_images"] == NUM_VALIDATION
    assert content["false_alarm_rate"] == 2 / NUM_VALIDATION
    processor, model = AutoImageProcessor.from_pretrained(out), load_exported(out)
    images = ValidationImages.of(store, None)
    pixels = [
        processor(Image.open(io.BytesIO(jpeg)), return_tensors="pt").pixel_values
        for jpeg in images.read(np.arange(NUM_VALIDATION))
    ]
    with torch.inference_mode():
        logits = logits_of(model, torch.cat(pixels)) / content["temperature"]
    odds = logits.double().softmax(1).amax(1).logit().sort().values
    assert content["threshold"] == pytest.approx(odds[1].item(), abs=1e-4)


def test_certainty_does_not_saturate():
    logits = torch.tensor([[200.0, 0.0, 0.0], [300.0, 0.0, 0.0]])
    low, high = maximum_softmax(logits, 0.1).tolist()
    assert low < high
    assert maximum_softmax(torch.tensor([[1.0, 0.0, -2.0]]), 2).item() == pytest.approx(
        torch.tensor([0.5, 0.0, -1.0]).double().softmax(0).max().logit().item(), abs=1e-5
    )


def test_the_temperature_makes_the_mean_confidence_the_accuracy():
    """Of logits that are certain of one class and right in four of five cases."""
    labels = torch.arange(1000) % 5 // 4
    logits = torch.tensor([[10.0, 0.0]]).expand(1000, 2)
    temperature = fit_temperature(logits, labels)
    assert (logits / temperature).softmax(1)[0, 0].item() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("number", [19, 20, 39, 100, 360])
def test_a_new_image_is_flagged_with_a_probability_of_at_most_a_twentieth(number):
    """Of n + 1 equally likely ranks, the new image has one of those up to the threshold."""
    scores = torch.arange(number).flip(0).float()
    num_flagged = (scores <= threshold_of(scores)).sum().item()
    assert num_flagged >= 1
    assert num_flagged / (number + 1) <= 0.05 < (num_flagged + 1) / (number + 1)


def test_too_few_validation_images_give_no_threshold(tmp_path, shards, capsys):
    run = make_run(tmp_path, shards)
    save_checkpoint(run, 24, 0.5, is_best=True)
    out = exported(run.path, tmp_path / "out", LocalShards(shards))
    assert not (out / "calibration.json").exists()
    assert "needs 19 validation images, found 11" in capsys.readouterr().out
    assert len(list((out / "examples").iterdir())) == 6


def test_the_card_names_rate_source_and_shards(run, with_images, tmp_path):
    card = (with_images / "README.md").read_text(encoding="utf-8")
    assert "5.0%<!--calibration.json false_alarm_rate-->" in card
    assert "tiny<!--examples.json dataset-->" in card
    assert "--shards SHARDS\n```" in card
    card = (exported(run, tmp_path / "other", None) / "README.md").read_text(encoding="utf-8")
    assert "calibration.json" not in card
    assert "examples.json" not in card


def test_pretrained_weights_are_calibrated_on_any_shards(with_images, store, tmp_path):
    options = ExportOptions(shards=store, examples=1)
    convert(str(with_images), tmp_path / "second", options=options)
    for name in ("calibration.json", "examples.json"):
        assert (tmp_path / "second" / name).is_file()
