"""Peak speed of GPUs by name, and which fraction of it is used (MFU). Imports no torch."""

from __future__ import annotations

# Peak of dense matrix products, TFLOP/s, of one device: float32 (of convolutions, for which cuDNN
# takes TF32 where there is such a unit, PyTorch's default), and float16 or bfloat16 that accumulate
# in float32. From NVIDIA's data sheets, as of November 2026; figures that they give "with sparsity"
# are halved. The first entry counts whose words are all among those of the device's name.
PEAK_TFLOPS: dict[str, tuple[float, float]] = {
    "B200": (1_100.0, 2_250.0),  # HGX B200 data sheet, per GPU
    "GH200": (494.5, 989.5),  # GH200 data sheet
    "H200 NVL": (417.5, 835.5),  # H200 data sheet
    "H200": (494.5, 989.5),  # H200 data sheet, SXM
    "H100 NVL": (417.5, 835.5),  # H100 data sheet
    "H100 PCIe": (378.0, 756.0),  # H100 data sheet
    "H100": (494.5, 989.5),  # H100 data sheet, SXM
    "A100": (156.0, 312.0),  # A100 data sheet
    "L40S": (183.0, 362.0),  # L40S data sheet
    "L40": (90.5, 181.0),  # L40 data sheet
    "L4": (60.0, 121.0),  # L4 data sheet
    "A10G": (35.0, 70.0),  # A10G data sheet; EC2 G5
    "A10": (62.5, 125.0),  # A10 data sheet
    "V100 PCIE": (14.0, 112.0),  # V100 data sheet; no TF32
    "V100": (15.7, 125.0),  # V100 data sheet, SXM2; no TF32
    "T4": (8.1, 65.0),  # T4 data sheet; no TF32
}
_WITHOUT_BF16 = ("V100", "T4")  # PyTorch emulates it there, slowly
_PART_OF_A_GPU = "MIG"  # in the names of partitions of a GPU, whose share is not known


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Return the peak of a device, TFLOP/s; None for devices and precisions without an entry.

    Args:
        device_name: As `torch.cuda.get_device_name` returns it.
        precision: `no`, `bf16` or `fp16`, as Accelerate names them.
    """
    words = device_name.replace("-", " ").split()
    if _PART_OF_A_GPU in words or precision not in {"no", "bf16", "fp16"}:
        return None
    if precision == "bf16" and any(name in words for name in _WITHOUT_BF16):
        return None
    for name, (single, half) in PEAK_TFLOPS.items():
        if all(word in words for word in name.split()):
            return single if precision == "no" else half
    return None


def utilisation(flops: float, images_per_second: float, peak: float | None) -> dict[str, float]:
    """Return the metrics of one device.

    Model FLOPs utilisation (MFU) is (FLOPs that the model needs x images/s) / peak (Chowdhery et
    al. 2022, PaLM, appendix B). FLOPs that are computed again do not count.

    Args:
        flops: FLOPs that the model needs for an image.
        images_per_second: Images/s of this device.
        peak: Its peak, TFLOP/s; None if unknown.

    Returns:
        `tflops`, TFLOP/s; and `mfu`, the fraction of the peak in [0, 1], if the peak is known.
    """
    tflops = flops * images_per_second / 1e12
    return {"tflops": tflops} | ({} if peak is None else {"mfu": tflops / peak})


def format_utilisation(metrics: dict[str, float]) -> str:
    """Return `tflops` and `mfu` as text, for example `7.3 TFLOP/s, 12% MFU`."""
    text = f"{metrics['tflops']:.3g} TFLOP/s"
    return text + (f", {metrics['mfu']:.0%} MFU" if "mfu" in metrics else "")
