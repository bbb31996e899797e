"""Weights of others: the same logits, and nothing in their files is run."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet50

from imagenet_rn50.classes import Classes
from imagenet_rn50.model import build_labelled, load_exported, to_torchvision
from imagenet_rn50.pretrained import load_weights, read_pretrained
from imagenet_rn50.publishing.export import ExportOptions, convert
from imagenet_rn50.recipe import ModelRecipe
from imagenet_rn50.utils.errors import InputError

pytestmark = pytest.mark.numeric

TINY = ModelRecipe(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 2), layer_type="bottleneck")
NAMES = [f"kind {index}" for index in range(5)]
CLASSES_OF_FIVE = Classes(tuple(f"n{index:08d}" for index in range(5)), tuple(NAMES))


def from_timm(name):
    return pytest.importorskip("timm").create_model(name)


def shaken(network, seed=0):
    """A network in which each tensor matters, also those that begin as zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            low = 0.5 if name.endswith(("running_var", "weight")) else -0.1
            tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
    return network.eval()


def logits(network, pictures):
    with torch.inference_mode():
        answer = network(pictures)
    return answer if isinstance(answer, torch.Tensor) else answer.logits


def require_equal_logits(ours, theirs, size):
    """Up to the choice of kernels, which hangs on where tensors lie in memory."""
    pictures = torch.randn(2, 3, size, size)
    torch.testing.assert_close(
        logits(ours, pictures), logits(theirs, pictures), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "wrapped"),
    [
        (resnet50, lambda state: state),
        (lambda: from_timm("resnet50"), lambda state: {"state_dict": state, "epoch": 3}),
        (resnet18, lambda state: {"model": {f"module.{n}": t for n, t in state.items()}}),
    ],
    ids=["torchvision", "timm", "a DDP checkpoint of resnet18"],
)
def test_weights_go_both_ways_and_compute_the_same(tmp_path, make, wrapped):
    theirs = shaken(make())
    torch.save(wrapped(theirs.state_dict()), tmp_path / "theirs.pth")
    pretrained = read_pretrained(str(tmp_path / "theirs.pth"))
    ours = build_labelled(pretrained.shape(), [str(index) for index in range(1000)]).eval()
    assert load_weights(ours, pretrained)
    require_equal_logits(ours, theirs, size=64)
    with torch.device("meta"):  # what would be initialized is replaced
        back = make()
    back.load_state_dict(to_torchvision(ours.state_dict()), strict=True, assign=True)
    original = theirs.state_dict()
    assert all(torch.equal(tensor, original[n]) for n, tensor in back.state_dict().items())


def names_of(model):
    return list(model.config.id2label.values())


def processor_in(folder):
    return json.loads((folder / "preprocessor_config.json").read_text())


@pytest.fixture
def weights(tmp_path):
    """A small network under torchvision's names."""
    path = tmp_path / "weights.safetensors"
    save_file(to_torchvision(shaken(build_labelled(TINY, NAMES)).state_dict()), path)
    return path


def test_other_classes_get_a_new_classifier_where_it_is_to_be_trained(weights):
    pretrained = read_pretrained(str(weights))
    assert pretrained.shape() == TINY
    torch.manual_seed(1)
    ours = build_labelled(TINY, NAMES[:3])
    before = ours.state_dict()["classifier.1.weight"].clone()
    with pytest.raises(InputError, match="expected: 3 classes\n  found:    5"):
        load_weights(ours, pretrained)
    assert not load_weights(ours, pretrained, new_head=True)
    assert torch.equal(ours.state_dict()["classifier.1.weight"], before)
    stem = ours.state_dict()["resnet.embedder.embedder.convolution.weight"]
    assert torch.equal(stem, pretrained.state["conv1.weight"])


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_is_never_run(tmp_path, monkeypatch, suffix, save):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    content = {"conv1.weight": torch.zeros(1), "extra": Hostile()}
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="cannot be read without running code"):
        read_pretrained(str(path))
    assert not (tmp_path / "pwned").exists()
    torch.load(path, weights_only=False) if save == "torch" else pickle.loads(path.read_bytes())
    assert (tmp_path / "pwned").exists()  # the plant works, where somebody lets it


def test_what_is_no_file_of_weights_says_what_it_is(tmp_path, weights):
    def refused(content, name="weights.safetensors"):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(InputError) as caught:
            read_pretrained(str(path))
        return str(caught.value)

    whole = weights.read_bytes()
    assert "is damaged" in refused(whole[: len(whole) // 2])
    assert "is damaged" in refused(b"")
    flat = {"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1), "lr": 0.1}
    assert "is damaged" in refused(b"nonsense", "weights.pth")
    assert "is not a file of weights" in refused(b"a picture", "cat.jpg")
    assert "no state dict" in refused(torch.zeros(3), "tensor.pth")
    assert "other than tensors" in refused(flat, "a.pth")
    assert "no conv1.weight among 1" in refused({"stem.weight": torch.ones(1)}, "vit.pth")
    for nowhere in ("nothing.pth", "a/b/c/d", "s3://bucket/weights.pth"):
        with pytest.raises(InputError, match="there are no weights"):
            read_pretrained(nowhere)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not an exported model"):
        read_pretrained(str(tmp_path / "empty"))


def test_another_architecture_is_named_by_its_first_differences(tmp_path, weights):
    pretrained = read_pretrained(str(weights))
    wider = build_labelled(TINY.model_copy(update={"hidden_sizes": (8, 32)}), NAMES)
    with pytest.raises(InputError, match=r"of \(16, .*\) instead of \(32, .*and \d+ more"):
        load_weights(wider, pretrained)
    save_file(from_timm("seresnet18").state_dict(), tmp_path / "se.safetensors")
    gated = read_pretrained(str(tmp_path / "se.safetensors"))
    with pytest.raises(InputError, match="do not fit the model"):
        load_weights(build_labelled(gated.shape(), [""] * 1000), gated)


def test_files_from_before_batches_were_counted_load_too(weights, tmp_path):
    pretrained = read_pretrained(str(weights))
    old = {name: t for name, t in pretrained.state.items() if "num_batches" not in name}
    assert len(old) < len(pretrained.state)
    save_file(old, tmp_path / "old.safetensors")
    ours = build_labelled(TINY, NAMES)
    assert load_weights(ours, read_pretrained(str(tmp_path / "old.safetensors")))


def test_weights_of_others_become_a_folder_that_computes_the_same(weights, tmp_path, capsys):
    classes = CLASSES_OF_FIVE
    classes.save(tmp_path)
    sizes = {"eval_size": 16, "eval_resize": 18}
    convert(str(weights), tmp_path / "out", classes=tmp_path / "classes.json", sizes=sizes)
    assert Classes.load(tmp_path / "out") == classes
    model = load_exported(tmp_path / "out")
    assert names_of(model) == NAMES
    original = read_pretrained(str(weights)).state
    converted = to_torchvision(model.state_dict())
    assert all(torch.equal(converted[name], tensor) for name, tensor in original.items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "weights.safetensors<!--origin.json name-->" in card
    assert "license:" not in card

    convert(str(tmp_path / "out"), tmp_path / "again", options=ExportOptions(dtype="float16"))
    again = load_exported(tmp_path / "again")
    assert names_of(again) == NAMES
    assert processor_in(tmp_path / "out") == processor_in(tmp_path / "again")


def test_classes_that_contradict_those_of_the_weights_are_refused(weights, tmp_path):
    CLASSES_OF_FIVE.save(tmp_path)
    convert(str(weights), tmp_path / "out", classes=tmp_path)
    Classes(CLASSES_OF_FIVE.wnids, CLASSES_OF_FIVE.names[::-1]).save(tmp_path)
    with pytest.raises(InputError, match="not those of --classes, or not in their order"):
        convert(str(tmp_path / "out"), tmp_path / "again", classes=tmp_path)
    assert not (tmp_path / "again").exists()


def test_other_sizes_change_nothing_else_of_a_folders_processor(weights, tmp_path):
    def made(**sizes):
        convert(str(tmp_path / "out"), tmp_path / "again", sizes=sizes)
        return processor_in(tmp_path / "again")

    CLASSES_OF_FIVE.save(tmp_path)
    convert(str(weights), tmp_path / "out", classes=tmp_path)
    path = tmp_path / "out" / "preprocessor_config.json"
    theirs = processor_in(tmp_path / "out") | {"image_mean": [0.1, 0.2, 0.3], "resample": 3}
    path.write_text(json.dumps(theirs))
    assert made(eval_size=32) == theirs | {"crop_size": {"height": 32, "width": 32}}
    with pytest.raises(InputError, match="eval_size must not be larger than eval_resize"):
        made(eval_size=300)

    path.write_text('{"image_processor_type": "ConvNextImageProcessor", "image_mean": [0, 0, 0]}')
    with pytest.raises(InputError, match="fix:      pass --eval-resize and --eval-size"):
        made()
    said = made(eval_size=32, eval_resize=40)
    assert (said["size"], said["image_mean"]) == ({"shortest_edge": 40}, [0, 0, 0])


@pytest.mark.parametrize(
    "config",
    [{"id2label": NAMES}, {"id2label": dict(enumerate(NAMES, 1))}],
)
def test_a_configuration_that_does_not_count_classes_from_0_is_refused(weights, tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json does not name the classes"):
        convert(str(tmp_path), tmp_path / "out")
    with pytest.raises(InputError, match=r"config\.json does not name the classes"):
        read_pretrained(str(weights)).labels()  # a configuration beside a file is its own


def test_what_weights_do_not_say_of_classes_and_pictures_must_be_said(weights, tmp_path, capsys):
    with pytest.raises(InputError, match=r"--classes classes\.json"):
        convert(str(weights), tmp_path / "out")
    of_1000 = shaken(build_labelled(TINY, [str(index) for index in range(1000)]))
    save_file(to_torchvision(of_1000.state_dict()), tmp_path / "of_1000.safetensors")
    convert(str(tmp_path / "of_1000.safetensors"), tmp_path / "out")
    said = capsys.readouterr().out
    assert "assuming ImageNet's" in said
    assert "resizing to 256 px, the central 224 px" in said
    labels = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert len(set(labels.values())) == 1000
    (tmp_path / "out" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        convert(str(tmp_path / "out"), tmp_path / "again")
    (tmp_path / "out" / "preprocessor_config.json").write_text('{"size": {"short')
    with pytest.raises(InputError, match=r"the processor in .* cannot be loaded"):
        convert(str(tmp_path / "out"), tmp_path / "again")
    assert not (tmp_path / "again").exists()
