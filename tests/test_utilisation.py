"""FLOPs of the model, and peaks by the names that devices give themselves."""

import pytest

from imagenet_rn50.peaks import format_utilisation, peak_tflops, utilisation
from imagenet_rn50.recipe import ModelRecipe
from imagenet_rn50.utilisation import forward_flops, training_flops

RESNET50 = ModelRecipe()


def test_resnet_50_has_its_published_4_09_gmacs():
    assert forward_flops(RESNET50, 224, 1000) / 2e9 == pytest.approx(4.09, abs=0.005)


def test_the_backward_pass_costs_two_forward_passes_less_the_gradient_of_the_image():
    stem = 2 * 3 * 64 * 7 * 7 * 112 * 112
    forward = forward_flops(RESNET50, 224, 1000)
    assert training_flops(RESNET50, 224, 1000) == 3 * forward - stem


def test_flops_grow_with_the_area():
    assert forward_flops(RESNET50, 160, 1000) / forward_flops(RESNET50, 224, 1000) == pytest.approx(
        (160 / 224) ** 2, rel=0.01
    )


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "fp16", 362.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA A100-SXM4-40GB", "no", 156.0),
        ("NVIDIA A10G", "fp16", 70.0),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "no", 494.5),
        ("NVIDIA GH200 480GB", "bf16", 989.5),
        ("Tesla V100-PCIE-32GB", "fp16", 112.0),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("Tesla T4", "bf16", None),
        ("Tesla T4", "no", 8.1),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp8", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
        ("x86_64", "no", None),
    ],
)
def test_peaks_are_found_by_the_devices_own_names(name, precision, peak):
    assert peak_tflops(name, precision) == peak


def test_utilisation_is_a_fraction_of_the_peak_and_left_out_where_that_is_unknown():
    known, unknown = utilisation(25e9, 1000, 100.0), utilisation(25e9, 1000, None)
    assert known == {"tflops": 25.0, "mfu": 0.25}
    assert unknown == {"tflops": 25.0}
    assert "25%" in format_utilisation(known)
    assert "%" not in format_utilisation(unknown)


def test_a_model_that_shrinks_an_image_to_one_pixel_has_flops():
    assert forward_flops(RESNET50, 32, 10) > 0
