"""Weights of others in the architecture that they were trained in, or not at all."""

import argparse
import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BitImageProcessor, ResNetConfig, ResNetForImageClassification

from imagenet_rn50.model import load_exported, load_processor, to_torchvision
from imagenet_rn50.pretrained import read_pretrained
from imagenet_rn50.pretrained_config import declared_by_hash, declared_by_name, normalization_of
from imagenet_rn50.publishing.export import convert
from imagenet_rn50.publishing.formats import require_format
from imagenet_rn50.utils.errors import InputError

NAMES = [f"kind {index}" for index in range(5)]
SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}  # arguments of timm's ResNet
SIZES = {"eval_size": 32, "eval_resize": 36}


def shaken(network):
    """A network in which each tensor matters, also those that begin as zeros or ones."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            low = 0.5 if name.endswith(("running_var", "weight")) else -0.1
            tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
    return network.eval()


def write_json(path, content):
    path.write_text(json.dumps(content))


@pytest.fixture
def theirs(tmp_path):
    """Writes a folder as transformers does, and returns it with the model."""

    def write(**fields):
        shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
        labels = {"id2label": dict(enumerate(NAMES))}
        network = shaken(ResNetForImageClassification(ResNetConfig(**shape, **labels, **fields)))
        network.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs", network

    return write


@pytest.fixture
def of_timm(tmp_path):
    """Writes a folder as timm does."""

    def write(name="resnet18", data=None, **arguments):
        network = shaken(timm.create_model(name, num_classes=5, **SMALL, **arguments))
        folder = tmp_path / "timm"
        timm.models.save_for_hf(
            network,
            folder,
            model_config={"pretrained_cfg": data or {}, "label_names": NAMES},
            safe_serialization=True,
        )
        return folder, network

    return write


def logits(network, size=64):
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        computed = network(images)
    return computed if isinstance(computed, torch.Tensor) else computed.logits


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_act": "silu"},
        {"downsample_in_bottleneck": True},
        {"downsample_in_first_stage": True},
        {"layer_type": "basic", "hidden_act": "gelu"},
    ],
    ids=str,
)
def test_an_architecture_of_transformers_is_exported_as_it_is(theirs, tmp_path, fields, capsys):
    folder, network = theirs(**fields)
    convert(str(folder), tmp_path / "out", sizes=SIZES)
    exported = load_exported(tmp_path / "out")
    torch.testing.assert_close(logits(exported), logits(network), rtol=1e-5, atol=1e-5)
    assert {name: getattr(exported.config, name) for name in fields} == fields
    assert "agree with transformers' ResNetForImageClassification" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "regnet"),
        ("architectures", ["ResNetModel"]),
        ("num_channels", 1),
        ("hidden_act", "nonsense"),
        ("hidden_act", 7),
        ("depths", [2, 2]),
        ("layer_type", "basic"),
        ("hidden_sizes", "wide"),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("auto_map", {"AutoModelForImageClassification": "evil.Model"}),
        ("id2label", {"0": "a", "1": "b"}),
    ],
)
def test_a_configuration_that_is_not_of_these_weights_is_refused(theirs, tmp_path, field, value):
    folder, _ = theirs()
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {field: value})
    with pytest.raises(InputError, match="num_classes" if field == "id2label" else field):
        convert(str(folder), tmp_path / "out", sizes=SIZES)
    assert not (tmp_path / "out").exists()


def test_the_configuration_beside_a_file_is_its_own(theirs, tmp_path):
    folder, network = theirs(hidden_act="silu")
    convert(str(folder / "model.safetensors"), tmp_path / "out", sizes=SIZES)
    torch.testing.assert_close(
        logits(load_exported(tmp_path / "out")), logits(network), rtol=1e-5, atol=1e-5
    )
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    convert(str(folder), tmp_path / "bin", sizes=SIZES)
    assert load_exported(tmp_path / "bin").config.hidden_act == "silu"


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("resnetblur18", {}, "BlurPool2d"),
        ("resnetaa50", {}, "AvgPool2d"),
        ("resnet18", {"act_layer": "silu"}, "act_layer 'silu'"),
        ("resnet18", {"output_stride": 16}, "output_stride 16"),
        ("resnet18", {"global_pool": "max"}, "global_pool 'max'"),
    ],
)
@pytest.mark.parametrize("where", ["folder", "checkpoint"])
def test_another_architecture_of_timm_with_the_same_parameters_is_refused(
    of_timm, tmp_path, name, arguments, told, where
):
    folder, network = of_timm(name, **arguments)
    source = folder
    if where == "checkpoint":  # as timm's train.py saves it
        options = argparse.Namespace(model_kwargs=SMALL | arguments, gp=None, crop_pct=None)
        source = tmp_path / "model_best.pth.tar"
        torch.save({"arch": name, "args": options, "state_dict": network.state_dict()}, source)
    with pytest.raises(InputError, match=f"another architecture(.|\n)*{told}"):
        read_pretrained(str(source)).rebuild()  # as export --from and --init-from do


def test_timms_preprocessing_and_names_go_into_the_export(of_timm, tmp_path, capsys):
    data = {"interpolation": "bicubic", "crop_pct": 0.95, "input_size": [3, 32, 32]}
    folder, network = of_timm(data=data | {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]})
    convert(str(folder), tmp_path / "out")
    exported = load_exported(tmp_path / "out")
    torch.testing.assert_close(logits(exported), logits(network), rtol=1e-5, atol=1e-5)
    assert list(exported.config.id2label.values()) == NAMES
    settings = load_processor(tmp_path / "out").to_dict()
    assert settings["resample"] == 3
    assert settings["size"]["shortest_edge"] == 33  # floor(32 / 0.95)
    assert settings["crop_size"] == {"height": 32, "width": 32}
    assert list(settings["image_mean"]) == [0.5, 0.4, 0.3]
    assert list(settings["image_std"]) == [0.3, 0.2, 0.1]
    assert "agree with timm's resnet18" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"crop_mode": "squash"}, "crop_mode squash"),
        ({"interpolation": "lanczos"}, "interpolation lanczos"),
        ({"input_size": [3, 32, 64]}, "input_size"),
        ({"label_offset": 1}, "label_offset"),
        ({"num_classes": 6}, "num_classes 6"),
    ],
)
def test_what_timm_declares_and_we_cannot_do_is_refused(of_timm, tmp_path, data, told):
    folder, _ = of_timm()
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= data
    config |= {key: value for key, value in data.items() if key == "num_classes"}
    write_json(folder / "config.json", config)
    with pytest.raises(InputError, match=told):
        convert(str(folder), tmp_path / "out")


def test_a_configuration_cannot_make_timm_fetch_or_load_anything(of_timm, tmp_path):
    folder, _ = of_timm()
    config = json.loads((folder / "config.json").read_text())
    for change in (
        {"architecture": "hf-hub:somebody/model"},
        {"architecture": "local-dir:/tmp"},
        {"architecture": ["resnet18"]},
        {"architecture": "vit_base_patch16_224"},
        {"model_args": {"checkpoint_path": "/tmp/x.pth"}},
        {"model_args": {"pretrained": True}},
    ):
        write_json(folder / "config.json", config | change)
        with pytest.raises(InputError, match=r"architecture|checkpoint_path|pretrained"):
            convert(str(folder), tmp_path / "out")


def test_a_bare_file_claims_no_architecture(theirs, tmp_path, capsys):
    _, network = theirs()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    mapping = tmp_path / "mapping.txt"
    mapping.write_text("".join(f"n0000000{i} {name}\n" for i, name in enumerate(NAMES)))
    convert(str(tmp_path / "w.pth"), tmp_path / "out", classes=mapping, sizes=SIZES)
    said = capsys.readouterr().out
    assert "w.pth does not state its architecture: assuming" in said
    assert "which no other library could confirm" in said
    assert "so it was assumed" in (tmp_path / "out" / "README.md").read_text()


def test_a_bare_file_is_compared_with_the_architecture_that_is_named(tmp_path, capsys):
    network = shaken(timm.create_model("resnet18", num_classes=1000))
    path = str(tmp_path / "w.pth")
    torch.save(network.state_dict(), path)
    convert(path, tmp_path / "out", arch="resnet18.a1_in1k", sizes={"eval_size": 32})
    assert "agree with timm's resnet18.a1_in1k (--arch)" in capsys.readouterr().out
    assert load_processor(tmp_path / "out").to_dict()["resample"] == 3  # of that tag
    assert "was assumed" not in (tmp_path / "out" / "README.md").read_text()
    for arch, told in (("resnetblur18", "another architecture"), ("resnet10t", "not those of")):
        with pytest.raises(InputError, match=told):
            read_pretrained(path, arch=arch).rebuild()


@pytest.mark.parametrize("arch", ["resnet51", "hf-hub:a/b", "resnet50.nonsense", "vit_tiny", ""])
def test_an_architecture_that_timm_does_not_have_is_refused(arch):
    with pytest.raises(InputError, match="--arch"):
        declared_by_name(arch)


@pytest.mark.parametrize(
    ("digits", "name", "resize", "resample"),
    [
        ("0676ba61", "torchvision's resnet50", 256, 2),
        ("11ad3fa6", "torchvision's resnet50", 232, 2),
        ("14fe96d1", "timm's resnet50.a1_in1k", 235, 3),
        ("84f4748f", "timm's resnetblur50.bt_in1k", 256, 3),
    ],
)
def test_a_published_file_is_known_by_its_hash(digits, name, resize, resample):
    declared = declared_by_hash(digits + "0" * 56)
    assert declared is not None
    assert declared.name == name
    processor = declared.processor()
    assert processor is not None
    settings = processor.to_dict()
    assert (settings["size"]["shortest_edge"], settings["resample"]) == (resize, resample)
    assert declared_by_hash("f" * 64) is None


def test_a_checkpoint_of_torchvisions_references_brings_its_sizes(tmp_path):
    from torchvision.models import resnet18

    network = shaken(resnet18(num_classes=4))
    sizes = {"val_resize_size": 40, "val_crop_size": 32, "interpolation": "bicubic"}
    options = argparse.Namespace(model="resnet18", lr=0.5, **sizes)
    torch.save({"model": network.state_dict(), "args": options}, tmp_path / "checkpoint.pth")
    pretrained = read_pretrained(str(tmp_path / "checkpoint.pth"))
    ours, theirs = pretrained.rebuild()
    assert theirs is not None
    torch.testing.assert_close(logits(ours), logits(network), rtol=1e-5, atol=1e-5)
    processor = pretrained.processor()
    assert processor is not None
    settings = processor.to_dict()
    assert (settings["size"]["shortest_edge"], settings["resample"]) == (40, 3)


@pytest.mark.parametrize(
    ("fields", "settings", "told"),
    [
        ({}, {}, None),
        ({"hidden_act": "silu"}, {}, "hidden_act silu"),
        ({"downsample_in_bottleneck": True}, {}, "downsample_in_bottleneck True"),
        ({}, {"do_center_crop": False}, "do_center_crop False"),
        ({}, {"rescale_factor": 1 / 127.5}, "rescale_factor 127.5"),
    ],
)
def test_torchvision_gets_what_torchvision_has(fields, settings, told):
    with torch.device("meta"):
        model = ResNetForImageClassification(ResNetConfig(num_labels=1000, **fields))
    processor = BitImageProcessor(**settings)
    if told is None:
        require_format(model, processor, "torchvision", "float32")
        return
    with pytest.raises(InputError, match=told):
        require_format(model, processor, "torchvision", "float32")


def test_the_processor_of_a_folder_is_kept_where_only_sizes_change(theirs, tmp_path):
    folder, _ = theirs()
    settings = {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_pct": 0.875,
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.2, 0.1],
        "rescale_factor": 1 / 127.5,
    }
    write_json(folder / "preprocessor_config.json", settings)
    image = torch.randint(0, 256, (3, 70, 50), dtype=torch.uint8)
    expected = load_processor(folder)(image, return_tensors="pt")["pixel_values"]
    convert(str(folder), tmp_path / "out")
    found = load_processor(tmp_path / "out")
    assert torch.equal(found(image, return_tensors="pt")["pixel_values"], expected)
    convert(str(folder), tmp_path / "out", sizes={"eval_size": 36, "eval_resize": 36})
    changed = load_processor(tmp_path / "out").to_dict()
    assert changed["crop_size"] == {"height": 36, "width": 36}
    assert list(changed["image_mean"]) == settings["image_mean"]
    assert (changed["resample"], changed["rescale_factor"]) == (3, 1 / 127.5)


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({}, 0.5, 0.25),
        ({"rescale_factor": 1 / 127.5}, 0.25, 0.125),
        ({"do_rescale": False}, 0.5 / 255, 0.25 / 255),
        ({"do_normalize": False}, 0.0, 1.0),
    ],
)
def test_normalisation_is_told_in_one_unit(settings, mean, std):
    given = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3} | settings
    found = normalization_of(BitImageProcessor(**given))
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[mean] * 3, [std] * 3]))


def test_classes_in_another_order_are_refused(theirs, tmp_path):
    folder, _ = theirs()
    swapped = [NAMES[index] for index in (1, 0, 2, 3, 4)]
    mapping = tmp_path / "mapping.txt"
    mapping.write_text("".join(f"n0000000{i} {name}\n" for i, name in enumerate(swapped)))
    with pytest.raises(InputError, match="not those of --classes, or not in their order"):
        convert(str(folder), tmp_path / "out", classes=mapping, sizes=SIZES)


@pytest.mark.parametrize("kind", ["int8", "nan", "float16"])
def test_quantized_and_lost_weights_are_refused_and_half_ones_read(theirs, tmp_path, kind):
    _, network = theirs()
    state = to_torchvision(network.state_dict())
    weight = state["layer2.0.conv1.weight"]
    if kind == "int8":
        state["layer2.0.conv1.weight"] = weight.mul(10).to(torch.int8)
    elif kind == "nan":
        weight[0, 0] = torch.nan
    else:
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    save_file(state, tmp_path / "weights.safetensors")
    if kind == "float16":
        assert read_pretrained(str(tmp_path / "weights.safetensors")).state["fc.bias"].dtype == (
            torch.float32
        )
        return
    with pytest.raises(InputError, match=r"layer2\.0\.conv1\.weight"):
        read_pretrained(str(tmp_path / "weights.safetensors"))
