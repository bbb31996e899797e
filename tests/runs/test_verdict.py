"""What a run says of its speed at its end, and what it advises."""

import pytest

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.metrics import START, TRAIN, MetricsLogger
from imagenet_rn50.runs.verdict import PRACTICAL_MFU, verdict

RECIPE = Recipe(global_batch=1024, micro_batch=256)
SMALL = Recipe(global_batch=1024, micro_batch=32)
ADVICE = ("bf16", "fp16", "inductor", "micro-batch", "--profile", "nothing to do", "doctor")


def write_process(
    run,
    *,
    waited=0.02,
    rate=50.0,
    device="cuda (NVIDIA L4)",
    precision="bf16",
    compiled="inductor",
    **used,
):
    """Writes the lines of one process."""
    run.mkdir(exist_ok=True)
    journal = MetricsLogger(run, 10**9)
    start = {"world_size": 4, "mixed_precision": precision, "compile": compiled}
    journal.write(START, 0, 0.0, **start, device=device)
    line = {"num_images": round(rate * 100), "seconds": 100.0, "data_wait": waited}
    journal.write(TRAIN, 8, 1.0, **line, **used)
    journal.close()


def advised(text):
    return [advice for advice in ADVICE if advice in text]


@pytest.mark.parametrize(
    ("process", "recipe", "advice"),
    [
        ({"compiled": "no", "mfu": 0.31}, RECIPE, ["inductor"]),
        ({"compiled": "no", "precision": "no"}, RECIPE, ["bf16", "inductor"]),
        ({"precision": "no", "mfu": 0.5}, RECIPE, ["bf16"]),
        ({"precision": "no", "device": "cuda (Tesla T4)"}, RECIPE, ["fp16"]),
        ({"precision": "no", "device": "cuda (NVIDIA GeForce RTX 4090)"}, RECIPE, ["bf16"]),
        ({"mfu": 0.1}, SMALL, ["micro-batch", "doctor"]),
        # A rank has no larger batch, so there is nothing to accumulate less of.
        ({"mfu": 0.1}, Recipe(global_batch=128, micro_batch=32), ["--profile"]),
        ({"mfu": 0.1}, RECIPE, ["--profile"]),
        ({"mfu": PRACTICAL_MFU}, RECIPE, ["nothing to do"]),
        ({}, RECIPE, []),  # a device of unknown peak
        ({"compiled": "no", "precision": "no", "device": "cpu (x86_64)"}, SMALL, []),
    ],
)
def test_a_run_that_computes_is_advised_what_is_not_on_yet(tmp_path, process, recipe, advice):
    write_process(tmp_path, **process, tflops=10.0)
    text = verdict(tmp_path, recipe)
    assert "compute-bound" in text
    assert advised(text) == advice


@pytest.mark.parametrize(
    ("waited", "bound", "most"),
    [
        (0.0, "compute", None),
        (0.049, "compute", None),
        (0.05, "input", "53"),
        (0.5, "input", "100"),
        (1.0, "input", None),
    ],
)
def test_a_run_that_waits_is_not_advised_to_compute_faster(tmp_path, waited, bound, most):
    write_process(tmp_path, waited=waited, compiled="no", precision="no")
    text = verdict(tmp_path, RECIPE)
    assert f"{bound}-bound" in text
    assert ("inductor" in text) == (bound == "compute")
    assert (f"up to {most} images/s" in text) == (most is not None)


def test_mfu_is_named_where_the_peak_is_known_and_tflops_elsewhere(tmp_path):
    write_process(tmp_path / "known", tflops=37.5, mfu=0.31)
    assert "50 images/s, GPU at 31% of its peak, data wait 2%" in verdict(
        tmp_path / "known", RECIPE
    )
    write_process(tmp_path / "unknown", tflops=37.5)
    assert "37.5 TFLOP/s" in verdict(tmp_path / "unknown", RECIPE)
    write_process(tmp_path / "old")
    assert "TFLOP/s" not in verdict(tmp_path / "old", RECIPE)


def test_a_resumed_run_is_judged_by_the_process_that_trained_last(tmp_path):
    write_process(tmp_path, waited=0.9, compiled="no")
    write_process(tmp_path, mfu=0.31)
    assert "compute-bound" in verdict(tmp_path, RECIPE)
    assert advised(verdict(tmp_path, RECIPE)) == ["nothing to do"]


def test_a_process_that_trained_nothing_leaves_the_verdict_to_the_one_before(tmp_path):
    write_process(tmp_path, waited=0.9)
    journal = MetricsLogger(tmp_path, 10**9)
    journal.write(START, 8, 1.0, world_size=1, mixed_precision="no", compile="no", device="cpu (x)")
    journal.close()
    assert "input-bound" in verdict(tmp_path, RECIPE)


def test_a_run_without_steps_has_no_speed(tmp_path):
    MetricsLogger(tmp_path, 0).close()
    assert "no speed" in verdict(tmp_path, RECIPE)
