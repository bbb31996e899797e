"""The ONNX models of an export, in the layout that transformers.js expects.

onnx/
  model.onnx             float32; `export --format onnx` and `export --web`
  model_fp16.onnx        weights of 16 bits, computed in float32; `export --web`
  model_quantized.onnx   weights and activations of 8 bits; `export --web`
  metrics.json           their accuracy on the validation split; `export --web`

Each has the outputs `logits`, (B, num_classes), and `class_maps`, (B, num_classes, h, w): the part
that each position of the last feature map contributes to each logit. These are the class activation
maps of Zhou et al. 2016 (arXiv 1512.04150), from which the page draws its heat maps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ResNetForImageClassification

from imagenet_rn50.classes import Classes
from imagenet_rn50.data.loader import DeviceBatch, build_loader, on_device
from imagenet_rn50.data.sampler import DistributedBatchSampler, Order, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform
from imagenet_rn50.evaluation.datasets import ShardImages
from imagenet_rn50.evaluation.load_model import check_classes
from imagenet_rn50.model import load_processor, load_whole, logits_of
from imagenet_rn50.publishing.layout import (
    ONNX_FOLDER,
    ONNX_MODELS,
    TRANSFORMERS_WEIGHTS,
    WEB_METRICS,
)
from imagenet_rn50.publishing.source import data_of
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Split
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import TEMPORARY_SUFFIX, replace_folder, sha256_of_file, write_json
from imagenet_rn50.utils.formatting import counted, percent
from imagenet_rn50.utils.logging import logger

Logits = Callable[[Tensor], Tensor]
"""From normalized images, (B, 3, H, W) float32, to logits, (B, num_classes) float32."""

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_SCHEMA = 1  # of onnx/metrics.json
_NUM_CALIBRATION_IMAGES = 512
_CALIBRATION_WINDOW = 8  # shards that calibration images come from at a time
_BATCH = 32
_ALLOWED = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest difference of logits, as a fraction of the largest; that of 8 bits is measured only."""


def require_packages(option: str) -> None:
    """Check that what writes ONNX models is installed.

    Args:
        option: The option that needs it, for the message.

    Raises:
        InputError: If packages are missing.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(
            f"{option} needs {', '.join(missing)}", fix="pip install -r requirements-onnx.txt"
        )


def require_web(shards: ShardStore | None, dtype: str) -> None:
    """Check that models for browsers can be written, before writing anything.

    Args:
        shards: The shards that the export was given.
        dtype: Data type of the exported weights.

    Raises:
        InputError: If packages, shards or one of their splits are missing, or the type does not
            fit.
    """
    require_packages("--web")
    if shards is None:
        raise InputError(
            "--web needs shards: training images to calibrate on, validation images to measure on",
            fix="add --shards SHARDS",
        )
    if dtype != "float32":
        raise InputError(
            "--web makes its own types of the float32 weights",
            expected="--dtype float32",
            found=f"--dtype {dtype}",
        )
    manifest = Manifest.load(shards.folder)
    for name in (TRAIN, VALIDATION):
        manifest.split(name)


class _WithClassMaps(nn.Module):
    """A ResNet classifier that also returns the class activation maps.

    The classifier is linear and follows a mean over all positions, so it may come first: as a
    convolution of the feature map, whose mean plus the bias are the logits.
    """

    def __init__(self, model: ResNetForImageClassification) -> None:
        super().__init__()
        self.backbone = model.get_submodule("resnet")
        linear = model.get_submodule("classifier.1")
        self.weight = nn.Parameter(linear.get_parameter("weight")[:, :, None, None])
        self.bias = linear.get_parameter("bias")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(pixel_values).last_hidden_state  # (B, C, h, w)
        class_maps = nn.functional.conv2d(features, self.weight)  # (B, num_classes, h, w)
        return class_maps.mean((2, 3)) + self.bias, class_maps


def write_onnx(model: ResNetForImageClassification, path: Path) -> Logits:
    """Write a float32 ONNX model for any number of images of any size.

    Args:
        model: The model, on the CPU.
        path: The file; its folder is created.

    Returns:
        The written model, loaded with onnxruntime.
    """
    path.parent.mkdir(exist_ok=True)
    program = torch.onnx.export(
        _WithClassMaps(model).eval(),
        (torch.zeros(2, 3, 64, 64),),
        input_names=["pixel_values"],
        output_names=["logits", "class_maps"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)
    return load_onnx(path)


def load_onnx(path: Path) -> Logits:
    """Load an ONNX model with onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        (computed,) = session.run(["logits"], {"pixel_values": images.contiguous().numpy()})
        return torch.from_numpy(computed)

    return logits


def add_web_models(folder: Path, shards: ShardStore) -> None:
    """Add the ONNX models for browsers to an earlier export for transformers.

    Args:
        folder: Exported folder.
        shards: See `write_web_models`.

    Raises:
        InputError: If it is no such export, or the shards have other classes.
    """
    require_web(shards, "float32")
    if not (folder / TRANSFORMERS_WEIGHTS).is_file():
        raise InputError(
            f"{folder} is not an export for transformers",
            expected=str(folder / TRANSFORMERS_WEIGHTS),
            fix="python -m imagenet_rn50 export --run RUN --out DIR --web --shards SHARDS",
        )
    model = load_whole(folder, str(folder)).eval()
    labels = list((model.config.id2label or {}).values())
    check_classes(str(folder), labels, str(shards.folder), Classes.load(shards.folder))
    write_web_models(model, folder, shards, data_of(load_processor(folder)))


def write_web_models(
    model: ResNetForImageClassification, folder: Path, shards: ShardStore, data: DataRecipe
) -> None:
    """Write the ONNX models for browsers, and measure them on the validation split.

    Args:
        model: The model, float32 on the CPU, in evaluation mode.
        folder: Exported folder; its `onnx/` is replaced.
        shards: Shards to calibrate on (training images) and to measure on (validation images).
        data: Sizes and normalization.

    Raises:
        InputError: If a weight is too large for 16 bits, or the shards lack a split.
        RuntimeError: If the logits of the float models differ from the model's.
    """
    final = folder / ONNX_FOLDER
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        files = {name: temporary / file.name for name, file in ONNX_MODELS.items()}
        write_onnx(model, files["fp32"])
        _halve_weights(files["fp32"], files["fp16"])
        _quantize(files["fp32"], files["int8"], shards, data)
        metrics = _measure(model, files, shards, data)
        write_json(temporary / WEB_METRICS.name, metrics)
        replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for name, found in metrics["models"].items():
        logger.info(
            f"{folder.name}/{ONNX_MODELS[name]}: {found['bytes'] / 1e6:.1f} MB, "
            f"top-1 {percent(found['top1'])} on {counted(metrics['num_images'], 'image')}, "
            f"the class of the trained model on {percent(found['same_top1'])}"
        )


def _halve_weights(source: Path, target: Path) -> None:
    """Store weights in 16 bits, and compute in float32 as before.

    Browsers compute with WebAssembly, which has no arithmetic of 16 bits, so a graph of that type
    would be converted at each layer. These weights are converted once, when the model is loaded.

    Raises:
        InputError: If a value is too large for the type.
    """
    import onnx

    model = onnx.load(source)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue  # norms and biases take little space
        with np.errstate(over="ignore"):  # reported below
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            raise InputError(f"{tensor.name} does not fit into 16 bits", fix="export without --web")
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        casts.append(
            onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def _quantize(source: Path, target: Path, shards: ShardStore, data: DataRecipe) -> None:
    """Quantize weights and activations to 8 bits; ranges are those of training images."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    split = Manifest.load(shards.folder).split(TRAIN)
    order = ShardShuffleSampler(split.shard_sizes, seed=0, window=_CALIBRATION_WINDOW)
    num_images = min(_NUM_CALIBRATION_IMAGES, split.num_samples)
    batches = _batches(shards, split, data, num_images, order)

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {"pixel_values": batch.images.contiguous().numpy()}

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)  # merges norms into convolutions
    [last] = (node for node in onnx.load(prepared).graph.node if "logits" in node.output)
    quantize_static(
        prepared,
        target,
        Images(),
        nodes_to_exclude=[last.name],  # the bias: its sum would be rounded to 256 levels
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # processors without VNNI add products of 8 bits in 16, which overflow
    )
    prepared.unlink()


def _measure(
    model: nn.Module, files: Mapping[str, Path], shards: ShardStore, data: DataRecipe
) -> dict[str, Any]:
    """Return the content of onnx/metrics.json: sizes, and accuracy on the validation split.

    Raises:
        RuntimeError: If the logits of the float models differ from the model's.
    """
    manifest = Manifest.load(shards.folder)
    split = manifest.split(VALIDATION)
    models = {name: load_onnx(path) for name, path in files.items()}
    correct, same, difference = (dict.fromkeys(models, 0.0) for _ in range(3))
    with torch.inference_mode():
        for batch in _batches(shards, split, data, split.num_samples):
            reference = logits_of(model, batch.images)
            largest = float(reference.abs().max())
            for name, logits_from in models.items():
                logits = logits_from(batch.images)
                predicted = logits.argmax(1)
                correct[name] += int((predicted == batch.labels).sum())
                same[name] += int((predicted == reference.argmax(1)).sum())
                found = float((logits - reference).abs().max()) / largest
                difference[name] = max(difference[name], found)
    for name, allowed in _ALLOWED.items():
        if not difference[name] <= allowed:  # also true for nan
            raise RuntimeError(
                f"the logits of {files[name].name} differ by {difference[name]:.3g} of the "
                f"largest; at most {allowed:.3g} is allowed"
            )
    total = split.num_samples
    return {
        "schema": _SCHEMA,
        "dataset": ShardImages(shards, VALIDATION).description,
        "num_images": total,
        "calibration": {
            "split": TRAIN,
            "num_images": min(_NUM_CALIBRATION_IMAGES, manifest.split(TRAIN).num_samples),
        },
        "models": {
            name: {
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": sha256_of_file(path),
                "top1": correct[name] / total,
                "same_top1": same[name] / total,
                "logit_difference": difference[name],
            }
            for name, path in files.items()
        },
    }


def _batches(
    shards: ShardStore,
    split: Split,
    data: DataRecipe,
    num_images: int,
    order: Order | None = None,
) -> Iterator[DeviceBatch]:
    """Yield normalized batches of the first images of an order."""
    loader = build_loader(
        shards,
        split,
        DistributedBatchSampler(start=0, stop=num_images, batch=_BATCH),
        EvalTransform(resize=data.eval_resize, size=data.eval_size),
        order=order,
    )
    yield from on_device(loader, torch.device("cpu"), data.mean, data.std)
    loader.close()
