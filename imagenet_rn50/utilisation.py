"""FLOPs of a training step, and which fraction of a device's peak a run reaches (MFU).

Model FLOPs utilisation is (FLOPs that the model needs per image x images/s) / peak FLOP/s of the
device (Chowdhery et al. 2022, PaLM, appendix B). FLOPs count a multiply-add as two, and nothing
that is computed again.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from imagenet_rn50.classes import Classes
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.recipe import ModelRecipe

# Peak of dense matrix products, TFLOP/s, of one device: float32 (of convolutions, for which cuDNN
# takes TF32 where there is such a unit, PyTorch's default), and float16 or bfloat16 that accumulate
# in float32. From NVIDIA's data sheets, as of November 2026; figures that they give "with sparsity"
# are halved. The first name that the device's name contains counts.
PEAK_TFLOPS: dict[str, tuple[float, float]] = {
    "B200": (1_100.0, 2_250.0),  # DGX B200 data sheet, per GPU
    "H200": (494.5, 989.5),  # H200 data sheet, SXM
    "H100 PCIe": (378.0, 756.0),  # H100 data sheet
    "H100": (494.5, 989.5),  # H100 data sheet, SXM
    "A100": (156.0, 312.0),  # A100 data sheet
    "L40S": (183.0, 362.0),  # L40S data sheet
    "L40": (90.5, 181.0),  # L40 data sheet
    "L4": (60.0, 121.0),  # L4 data sheet
    "A10G": (35.0, 70.0),  # A10 family; AWS's variant, EC2 G5 documentation
    "A10": (62.5, 125.0),  # A10 data sheet
    "V100": (15.7, 125.0),  # V100 data sheet, SXM2; no TF32
    "T4": (8.1, 65.0),  # T4 data sheet; no TF32
}


@cache
def training_flops(model: ModelRecipe, size: int, num_classes: int) -> int:
    """Return the FLOPs of one image's forward and backward pass.

    Args:
        model: The model's settings.
        size: Side of the image, px.
        num_classes: Number of classes.
    """
    return _flops(model, size, num_classes, is_training=True)


@cache
def forward_flops(model: ModelRecipe, size: int, num_classes: int) -> int:
    """Return the FLOPs of one image's forward pass; see `training_flops`."""
    return _flops(model, size, num_classes, is_training=False)


def _flops(model: ModelRecipe, size: int, num_classes: int, *, is_training: bool) -> int:
    wnids = tuple(f"n{number:08d}" for number in range(num_classes))
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):  # computes shapes only
        network = build_model(model, Classes(wnids, wnids))
        images = torch.empty(1, 3, size, size)
        with counter:
            logits = logits_of(network, images)
            if is_training:
                logits.sum().backward()
    return int(counter.get_total_flops())


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Return the peak of a device, TFLOP/s; None for devices that the table lacks.

    Args:
        device_name: As `torch.cuda.get_device_name` returns it.
        precision: `no`, `bf16` or `fp16`, as Accelerate names them.
    """
    words = device_name.replace("-", " ").split()
    for name, (single, half) in PEAK_TFLOPS.items():
        if all(word in words for word in name.split()):
            return single if precision == "no" else half
    return None


def utilisation(flops: float, images_per_second: float, peak: float | None) -> dict[str, float]:
    """Return the metrics of one device.

    Args:
        flops: FLOPs of an image.
        images_per_second: Images/s of this device.
        peak: Its peak, TFLOP/s; None if unknown.

    Returns:
        `tflops`, TFLOP/s; and `mfu`, the fraction of the peak in [0, 1], if the peak is known.
    """
    tflops = flops * images_per_second / 1e12
    return {"tflops": tflops} | ({} if peak is None else {"mfu": tflops / peak})
