"""Seconds from the launch of a training to its first step, and of validation from epoch to epoch.

    python -m benchmarks.cold_start [--rounds 5]

A start is the whole command: Python or `accelerate launch` with two processes on the CPU,
imports, reading the manifest, building the model, starting two loader workers a rank, and one
optimizer step of the digits recipe. Beside it, a floor that nothing built on these libraries can
beat: a script that imports torch, accelerate and transformers' ResNet, builds the same model and
takes one step on random numbers, launched in the same way.

The second table trains the digits for some epochs under both ways of starting loader workers:
`fork`, Linux's default until Python 3.13, and `forkserver`, its default from 3.14 on.

Rounds alternate between the contenders, and every other round goes in the opposite order.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "cold_start.txt"
NUM_WORKERS, NUM_EPOCHS = 2, 4
_LAUNCHED_AT, _TIMES = "COLD_START_LAUNCHED_AT", "COLD_START_TIMES"
_PHASES = ("imports", "set up", "first batch", "first step")
_METHODS = ("fork", "forkserver")


def train(words: list[str]) -> None:
    """Run `train_accelerate.py`; note when each phase ended, in seconds since the launch."""
    began, ended = float(os.environ[_LAUNCHED_AT]), {}
    sys.argv = ["train_accelerate.py", *words]
    # What `main` imports only after parsing belongs to the imports, too.
    import imagenet_rn50.training.lr_finder  # noqa: F401
    import imagenet_rn50.training.trainer as training
    from train_accelerate import main

    ended["imports"] = time.time() - began

    class Timed(training.Trainer):
        """A trainer that notes its phases and exits after its first step."""

        def train(self) -> None:
            ended["set up"] = time.time() - began
            super().train()

        def to_device(self, loader: Any) -> Any:
            for batch in super().to_device(loader):
                ended.setdefault("first batch", time.time() - began)
                yield batch

        def train_step(self, *arguments: Any, **options: Any) -> None:
            super().train_step(*arguments, **options)
            ended["first step"] = time.time() - began
            _write(ended)
            self.loader.close()
            os._exit(0)

    training.Trainer = Timed  # type: ignore[misc]
    main()


def floor() -> None:
    """Import the libraries, build the recipe's model and take one step on random numbers."""
    began, ended = float(os.environ[_LAUNCHED_AT]), {}
    import torch
    from accelerate import Accelerator
    from transformers import ResNetConfig, ResNetForImageClassification

    ended["imports"] = time.time() - began
    accelerator = Accelerator()
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=10,
    )
    model: torch.nn.Module = ResNetForImageClassification(config)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    ended["set up"] = ended["first batch"] = time.time() - began
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    accelerator.backward(torch.nn.functional.cross_entropy(model(images).logits, labels))
    optimizer.step()
    ended["first step"] = time.time() - began
    _write(ended)
    os._exit(0)


def epochs(method: str, words: list[str]) -> None:
    """Run `train_accelerate.py` with a start method for its loader workers."""
    multiprocessing.set_start_method(method)
    sys.argv = ["train_accelerate.py", *words]
    from train_accelerate import main

    main()


def _write(ended: dict[str, float]) -> None:
    path = Path(os.environ[_TIMES]) / os.environ.get("RANK", "0")
    path.write_text(json.dumps(ended), encoding="utf-8")


def start(contender: str, ranks: int, shards: Path) -> dict[str, float]:
    """Launch a contender; return the seconds at which its slowest rank ended each phase."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable]
        if ranks > 1:
            config = f"accelerate_configs/cpu_{ranks}proc.yaml"
            command += ["-m", "accelerate.commands.launch", "--quiet", "--config_file", config]
        command += ["-m", "benchmarks.cold_start", "--child", contender]
        (Path(folder) / "times").mkdir()
        _run([*command, *_words(shards, Path(folder))], Path(folder) / "times")
        times = [json.loads(path.read_text()) for path in Path(folder, "times").iterdir()]
    assert len(times) == ranks, f"{len(times)} of {ranks} ranks took a step"
    return {phase: max(each[phase] for each in times) for phase in _PHASES}


def validation_seconds(method: str, shards: Path) -> tuple[float, list[float]]:
    """Train for some epochs; return the seconds of the whole, and of each validation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.cold_start", "--child", method]
        words = [*_words(shards, Path(folder)), "--epochs", str(NUM_EPOCHS)]
        words += ["--schedule.warmup-epochs", "1"]
        began = time.perf_counter()
        _run([*command, *words], Path(folder))
        whole = time.perf_counter() - began
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return whole, [line["seconds"] for line in found if line["kind"] == "validation"]


def _words(shards: Path, folder: Path) -> list[str]:
    words = ["--recipe", "digits", "--shards", str(shards), "--run", str(folder / "run")]
    return [*words, "--workers", str(NUM_WORKERS)]


def _run(command: list[str], times: Path) -> None:
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    environment |= {_LAUNCHED_AT: str(time.time()), _TIMES: str(times), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def make_shards(folder: Path) -> Path:
    """Pack scikit-learn's digits, as the demo does."""
    from imagenet_rn50.shards.pack import pack
    from imagenet_rn50.shards.plan import PackOptions
    from imagenet_rn50.shards.sources.detect import read_source
    from imagenet_rn50.tools.digits import write_ilsvrc

    pack(read_source(write_ilsvrc(folder / "source")), folder / "shards", PackOptions())
    return folder / "shards"


def _alternated(cases: list[Any], rounds: int) -> list[Any]:
    """Return all cases once a round, every other round in the opposite order."""
    return [case for n in range(rounds) for case in (cases if n % 2 == 0 else cases[::-1])]


def measure(rounds: int, shards: Path) -> list[str]:
    """Return the lines of the result."""
    cases = [(contender, ranks) for ranks in (1, 2) for contender in ("floor", "train")]
    starts: dict[Any, list[dict[str, float]]] = {case: [] for case in cases}
    for contender, ranks in _alternated(cases, rounds):
        starts[contender, ranks].append(start(contender, ranks, shards))
    lines = [
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, medians of {rounds} rounds",
        "",
        f"seconds from the launch to the end of each phase, {NUM_WORKERS} loader workers a rank",
        f"{'':12}{'ranks':>6}" + "".join(f"{phase:>13}" for phase in _PHASES) + "  ratio to floor",
    ]
    for contender, ranks in cases:
        found = starts[contender, ranks]
        row = [median(each[phase] for each in found) for phase in _PHASES]
        pairs = zip(found, starts["floor", ranks], strict=True)
        ratio = median(ours[_PHASES[-1]] / bare[_PHASES[-1]] for ours, bare in pairs)
        cells = "".join(f"{seconds:13.2f}" for seconds in row)
        lines.append(f"{contender:12}{ranks:6}{cells}{ratio:16.2f}")
    lines += ["", f"seconds of {NUM_EPOCHS} epochs of the digits, and of each validation"]
    epochs: dict[str, list[tuple[float, list[float]]]] = {method: [] for method in _METHODS}
    for method in _alternated(list(_METHODS), max(rounds // 2, 1)):
        epochs[method].append(validation_seconds(method, shards))
    for method, trained in epochs.items():
        whole = median(seconds for seconds, _ in trained)
        each = [median(values) for values in zip(*(v for _, v in trained), strict=True)]
        lines.append(f"{method:12}{whole:8.1f}:" + "".join(f"{seconds:8.2f}" for seconds in each))
    return lines


def main() -> None:
    """Print and save the medians."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child")
    arguments, words = parser.parse_known_args()
    if arguments.child == "train":
        train(words)
    elif arguments.child == "floor":
        floor()
    elif arguments.child:
        epochs(arguments.child, words)
    else:
        with tempfile.TemporaryDirectory() as folder:
            lines = measure(arguments.rounds, make_shards(Path(folder)))
        text = "\n".join(lines) + "\n"
        print(text)
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
