import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import resnet50
from transformers import AutoModelForImageClassification

from imagenet_rn50.classes import Classes
from imagenet_rn50.model import build_model, load_exported, logits_of
from imagenet_rn50.publishing import formats as verify
from imagenet_rn50.publishing.export import ExportOptions, export
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.runs.checkpoint import EMA_WEIGHTS, folder_name
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.utils.errors import InputError
from tests.publishing.runs import (
    RESNET50_RECIPE,
    make_run,
    random_model,
    save_checkpoint,
    thousand_classes,
)
from tests.support import CLASSES


def trained(run, samples_seen, file="model.safetensors"):
    model = build_model(run.recipe().model, run.classes())
    model.load_state_dict(load_file(run.checkpoints / folder_name(samples_seen) / file))
    return model.eval()


def same(ours, theirs):
    """Whether two models are one, bit by bit."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and len(ours) == len(theirs)


@pytest.mark.parametrize(("checkpoint", "samples_seen"), [("best", 48), ("last", 72)])
def test_the_chosen_checkpoint_is_exported_to_the_last_bit(run, tmp_path, checkpoint, samples_seen):
    export(run.path, tmp_path / "out", checkpoint=checkpoint)
    assert same(trained(run, samples_seen), load_exported(tmp_path / "out"))


@pytest.mark.parametrize(
    ("weights", "checkpoint", "samples_seen", "file"),
    [
        ("auto", "best", 24, "model.safetensors"),  # raw weights scored 0.75
        ("ema", "best", 48, EMA_WEIGHTS),  # averaged ones 0.7
        ("raw", "last", 48, "model.safetensors"),
        ("auto", "last", 48, EMA_WEIGHTS),
    ],
)
def test_averaged_or_raw_weights_are_taken_as_they_scored(
    tmp_path, shards, capsys, weights, checkpoint, samples_seen, file
):
    run = make_run(tmp_path, shards)
    save_checkpoint(run, 24, 0.75, ema_top1=0.5, is_best=True)
    save_checkpoint(run, 48, 0.625, ema_top1=0.7)
    export(run.path, tmp_path / "out", checkpoint=checkpoint, weights=weights)
    assert same(trained(run, samples_seen, file), load_exported(tmp_path / "out"))
    kind = "averaged" if file == EMA_WEIGHTS else "raw"
    assert f"exporting {folder_name(samples_seen)}, {kind}" in capsys.readouterr().out


def test_a_checkpoint_without_averaged_weights_or_validation_is_no_mystery(run, tmp_path, capsys):
    with pytest.raises(InputError, match="no averaged weights"):
        export(run.path, tmp_path / "out", weights="ema")
    metrics = run.path / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    export(run.path, tmp_path / "out", checkpoint="last")  # killed before its validation
    assert "not validated in" in capsys.readouterr().out
    assert "These weights were not evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_exporting_again_replaces_the_export_and_nothing_else(run, tmp_path):
    out = tmp_path / "out"
    export(run.path, out, checkpoint="last")
    export(run.path, out, checkpoint="best")
    assert same(trained(run, 48), load_exported(out))
    other = tmp_path / "holiday-pictures"
    other.mkdir()
    (other / "beach.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"holds something other.*\n.*\n  found:    beach\.jpg\n"):
        export(run.path, other)
    assert (other / "beach.jpg").read_bytes() == b"precious"


def test_what_people_put_into_an_export_is_not_lost(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(run.path, out)
    (out / "examples").mkdir()
    (out / "examples" / "cat.jpg").write_bytes(b"a cat")
    export(run.path, out)
    assert (out / "examples" / "cat.jpg").read_bytes() == b"a cat"
    (out / "report.html").write_text("days of work")
    (out / "plots").mkdir(exist_ok=True)
    (out / "plots" / "mine.svg").write_text("drawn")
    with pytest.raises(InputError, match=r"found:    plots/mine\.svg, report\.html\n"):
        export(run.path, out)
    assert (out / "report.html").read_text() == "days of work"
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(InputError, match="cannot be replaced"):
        export(run.path, Path())


def test_an_export_takes_its_name_on_the_disk_before_the_old_one_goes(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    synced: list[str] = []
    export(run.path, out, checkpoint="last")
    rename = Path.rename

    def cut(self, target):
        assert {"model.safetensors", "config.json", "README.md"} <= set(synced)
        assert list(tmp_path.glob("out*/config.json"))  # one is whole at any moment
        if target == out and self.name == "out.partial":
            raise OSError("no space left on device")
        return rename(self, target)

    monkeypatch.setattr(
        "imagenet_rn50.utils.files.sync_folder", lambda path: synced.append(path.name)
    )
    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises(OSError, match="no space"):
        export(run.path, out, checkpoint="best")
    assert same(trained(run, 72), load_exported(out))
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_an_export_that_does_not_compute_the_same_never_appears(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(run.path, out, checkpoint="last")
    wrong = build_model(run.recipe().model, CLASSES).eval()
    monkeypatch.setattr("imagenet_rn50.publishing.formats.load_exported", lambda folder: wrong)
    with pytest.raises(RuntimeError, match="the exported weights differ"):
        export(run.path, out, checkpoint="best")
    assert same(trained(run, 72), load_exported(out))
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_without_checkpoints_or_no_run_at_all_is_named(tmp_path, shards):
    with pytest.raises(InputError, match="holds no run"):
        export(tmp_path / "nothing", tmp_path / "out")
    run = make_run(tmp_path, shards)
    with pytest.raises(InputError, match="holds no checkpoint"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_other_checkpoint_is_exported_instead_of_a_damaged_one(run, tmp_path):
    path = run.checkpoints / folder_name(48) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match=r"the best checkpoint, .*000048, is damaged"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(run.path, tmp_path / "out", checkpoint="last")
    assert same(trained(run, 72), load_exported(tmp_path / "out"))


def test_other_numbers_of_classes_are_said_before_anything_is_written(run, shards, tmp_path):
    fewer = Classes(wnids=CLASSES.wnids[:2], names=CLASSES.names[:2])
    fewer.save(tmp_path)
    (tmp_path / "manifest.json").write_bytes((shards / "manifest.json").read_bytes())
    with pytest.raises(InputError, match="a model of 2 classes\n  found:    one of 3"):
        export(run.path, tmp_path / "out", options=ExportOptions(shards=LocalShards(tmp_path)))
    fewer.save(run.path)
    with pytest.raises(InputError, match="does not fit the recipe and the classes"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_thousand_classes_keep_a_thousand_names(tmp_path, shards):
    run = make_run(tmp_path, shards, classes=thousand_classes())
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    labels = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert len(set(labels.values())) == 1000
    wnids = thousand_classes().wnids
    assert [labels["7"], labels["700"]] == [f"crane ({wnids[7]})", f"crane ({wnids[700]})"]


@pytest.mark.numeric
def test_a_resnet50_goes_to_torchvision_and_computes_the_same(tmp_path, shards):
    run = make_run(tmp_path, shards, recipe=RESNET50_RECIPE)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out", options=ExportOptions(form="torchvision"))
    theirs = resnet50(num_classes=3).eval()
    theirs.load_state_dict(load_file(tmp_path / "out" / "resnet50.safetensors"), strict=True)
    pictures = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        ours = logits_of(trained(run, 24), pictures)
        torch.testing.assert_close(theirs(pictures), ours, rtol=1e-5, atol=1e-5)


def test_torchvision_has_no_small_network_and_says_so(run, tmp_path):
    with pytest.raises(InputError, match="torchvision has no such model"):
        export(run.path, tmp_path / "out", options=ExportOptions(form="torchvision"))
    assert not (tmp_path / "out").exists()


@pytest.mark.numeric
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself
def test_an_onnx_model_takes_any_batch_and_computes_the_same(run, shards, tmp_path):
    options = ExportOptions(form="onnx", shards=LocalShards(shards))
    export(run.path, tmp_path / "out", options=options)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx")
    for shape in ((1, 3, 16, 16), (7, 3, 16, 16), (3, 3, 24, 40)):
        pictures = torch.randn(shape)
        (theirs,) = session.run(["logits"], {"pixel_values": pictures.numpy()})
        with torch.inference_mode():
            ours = logits_of(trained(run, 48), pictures)
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="must be float32"):
        export(run.path, tmp_path / "out", options=ExportOptions(form="onnx", dtype="float16"))


def test_a_missing_exporter_is_an_install_command(run, tmp_path, monkeypatch):
    monkeypatch.setattr("imagenet_rn50.publishing.onnx_models.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"pip install -r requirements-onnx\.txt"):
        export(run.path, tmp_path / "out", options=ExportOptions(form="onnx"))


def test_half_precision_weights_are_half_the_size_and_load_as_such(run, tmp_path, shards):
    export(run.path, tmp_path / "whole")
    options = ExportOptions(dtype="float16", shards=LocalShards(shards))
    export(run.path, tmp_path / "half", options=options)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "half").dtype == torch.float16
    assert load_exported(tmp_path / "half").dtype == torch.float32
    whole, half = (
        load_file(tmp_path / name / "model.safetensors")["classifier.1.weight"]
        for name in ("whole", "half")
    )
    assert 2 * half.nbytes == whole.nbytes
    assert torch.equal(whole.half(), half)


def test_a_weight_beyond_half_precision_is_named(run, tmp_path, monkeypatch):
    model = random_model(run.recipe().model, CLASSES, 0)
    model.classifier[1].bias.data[0] = 1e6
    monkeypatch.setattr("imagenet_rn50.publishing.source.network_of", lambda *a: model)
    with pytest.raises(InputError, match=r"classifier\.1\.bias does not fit into float16"):
        export(run.path, tmp_path / "out", options=ExportOptions(dtype="float16"))


def test_pictures_of_the_shards_are_compared_one_by_one(run, shards, tmp_path, capsys):
    export(run.path, tmp_path / "out", options=ExportOptions(shards=LocalShards(shards)))
    assert "the same top-1 class on 11 of 11 images" in capsys.readouterr().out
    export(run.path, tmp_path / "out")
    assert "not compared on images: no --shards" in capsys.readouterr().out


def test_a_single_picture_with_other_logits_or_another_class_is_found(run, shards):
    model = trained(run, 48)

    def last_one_swapped(pictures):
        logits = logits_of(model, pictures).clone()
        values, (first, second) = logits[-1].topk(2)
        middle, margin = values.mean(), values[0] - values[1]
        logits[-1, first], logits[-1, second] = middle - 0.1 * margin, middle + 0.1 * margin
        margins.append(margin / logits_of(model, pictures).abs().max())
        return logits

    margins: list[torch.Tensor] = []
    where = LocalShards(shards), run.recipe().data
    with pytest.raises(RuntimeError, match="logits differ"):
        verify.compare_on_shards(model, last_one_swapped, *where, allowed=0.0)
    margin = float(margins[0])
    with pytest.raises(RuntimeError, match="predicts another top-1 class"):
        verify.compare_on_shards(model, last_one_swapped, *where, allowed=0.8 * margin)
    close = verify.compare_on_shards(model, last_one_swapped, *where, allowed=1.1 * margin)
    assert close == (10, 11)


@pytest.mark.parametrize("allowed", [1e-5, 1e-2])
def test_logits_that_differ_by_more_than_is_allowed_are_found(run, allowed):
    model = trained(run, 48)

    def other(pictures):
        logits = logits_of(model, pictures)
        return logits + 2 * allowed * logits.abs().max()

    with pytest.raises(RuntimeError, match="logits differ"):
        verify.compare_logits(model, other, DataRecipe().eval_size, allowed)
