"""One line about the speed of a run, from metrics.jsonl: what limits it, and what to try."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from imagenet_rn50.peaks import peak_tflops
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.metrics import START, TRAIN, read_metrics, time_mean
from imagenet_rn50.utils.formatting import percent, rate_text

_HARDLY = 0.05  # of the time; waiting less than that hardly slows a run down
_ALL = 0.95  # of the time; then nothing is known of the speed without waiting
_SMALL_MICRO_BATCH = 64  # images; a GPU has too little work in a smaller one
# BatchNorm and activations are bound by the memory, so no ResNet-50 comes near the peak: NVIDIA's
# own reaches 19% on an A100 and 23% on a V100 (images/s in mixed precision of one GPU in
# DeepLearningExamples, resnet50v1.5/README.md, as of November 2026; not reproduced here).
PRACTICAL_MFU = 0.19


def verdict(run: Path, recipe: Recipe) -> str:
    """Return a sentence about the speed of the process that trained last.

    Loading and computing overlap, so a run that waits for data computes no faster than it loads:
    a faster GPU or a compiled model would only wait longer. MFU is of the wall clock, so that of a
    run that waits is judged without the wait.

    Args:
        run: The run directory.
        recipe: Its recipe.
    """
    start, train = _last_process(run)
    if not train:  # resumed from another run's last checkpoint, only to evaluate it
        return "no step was trained in this run: no speed to report"
    seconds = sum(record["seconds"] for record in train)
    rate = sum(record["num_images"] for record in train) / seconds
    waited = time_mean(train, "data_wait") or 0.0
    mfu, tflops = time_mean(train, "mfu"), time_mean(train, "tflops")
    facts = [f"{rate_text(rate)} images/s"]
    if mfu is not None:
        facts.append(f"GPU at {percent(mfu, 0)} of its peak")
    elif tflops is not None:
        facts.append(f"{tflops:.3g} TFLOP/s")
    facts.append(f"data wait {percent(waited, 0)}")
    text = ", ".join(facts)
    if waited >= _HARDLY:
        most = f" up to {rate_text(rate / (1 - waited))} images/s" if waited < _ALL else ""
        return f"{text}: input-bound; a faster loader gives{most or ' more'}, see doctor --shards"
    return f"{text}: compute-bound{_advice(start, recipe, mfu, waited)}"


def _advice(start: dict[str, Any], recipe: Recipe, mfu: float | None, waited: float) -> str:
    """Return what to try where computing limits the speed; nothing that is on already."""
    kind, name = _device(start)
    if kind != "cuda":
        return ""
    found = []
    if start["mixed_precision"] == "no":
        has_bf16 = peak_tflops(name, "bf16") or not peak_tflops(name, "fp16")
        found.append(f"--mixed_precision {'bf16' if has_bf16 else 'fp16'}")
    if start["compile"] == "no":
        found.append("--dynamo_backend inductor")
    rank_batch = recipe.global_batch // start["world_size"]
    if recipe.micro_batch < min(_SMALL_MICRO_BATCH, rank_batch):
        found.append("in a new run, a larger --micro-batch (doctor --find-micro-batch)")
    if found:
        return f"; try {', '.join(found)}"
    if mfu is None:
        return ""
    if mfu / (1 - waited) >= PRACTICAL_MFU:
        return "; about as fast as ResNet-50 gets on a GPU: nothing to do"
    return "; nothing is left to switch on: --profile 20 shows where the time goes"


def _last_process(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the start line and the train lines of the last process that trained."""
    start: dict[str, Any] = {}
    trained: tuple[dict[str, Any], list[dict[str, Any]]] = start, []
    for record in read_metrics(run):
        if record["kind"] == START:
            start = record
        elif record["kind"] == TRAIN:
            if trained[0] is not start:
                trained = start, []
            trained[1].append(record)
    return trained


def _device(start: dict[str, Any]) -> tuple[str, str]:
    """Return the type and the name of the device of a start line: `cuda (NVIDIA L4)`."""
    found = re.fullmatch(r"(\S+) \((.*)\)", start.get("device", ""))
    return (found[1], found[2]) if found else ("", "")
