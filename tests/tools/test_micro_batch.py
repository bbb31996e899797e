"""The largest micro batch that fits, found by real child processes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagenet_rn50.__main__ import main
from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.tools.micro_batch import (
    Child,
    Setup,
    Trial,
    bisect_trials,
    candidates,
    find_micro_batches,
    format_micro_batches,
)
from tests.support import write_recipe

ROOT = Path(__file__).parents[2]
MIB = 2**20
WIDE = "embedding_size: 256, hidden_sizes: [256]"

LARGE = """\
epochs: 2
global_batch: 2048
micro_batch: 4
ema_decay: 0.9
mixup_alpha: 0.2
model: {embedding_size: 16, hidden_sizes: [16], depths: [2], layer_type: basic}
data: {train_size: 32, final_size: 192, growth: [0, 1], eval_size: 32, eval_resize: 36}
"""


@pytest.mark.parametrize("largest", [0, 1, 2, 5, 16, 48, 1000])
def test_bisection_finds_the_largest_size_that_fits(largest):
    sizes = candidates(48)
    assert sizes == [2, 3, 4, 6, 8, 12, 16, 24, 48]
    trials = bisect_trials(
        sizes, lambda size: Trial(size, "fits" if size <= largest else "out of memory")
    )
    fitting = [trial.micro_batch for trial in trials if trial.outcome == "fits"]
    assert max(fitting, default=None) == max((s for s in sizes if s <= largest), default=None)
    assert fitting == sorted(fitting)  # so a process that runs them has the peak of its last one
    assert len(trials) <= 4


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    recipe = load_recipe(str(write_recipe(tmp_path_factory.mktemp("recipe"), LARGE)))
    return Setup(recipe, num_classes=3, ranks=2, timeout=0.5)


def test_trials_are_of_the_largest_images_and_of_divisors_of_a_ranks_batch(setup):
    assert setup.size == 192
    assert setup.rank_batch == 1024
    assert all(1024 % size == 0 for size in candidates(setup.rank_batch))
    assert candidates(1) == [1]


def outcome(setup, monkeypatch, tmp_path, code):
    """Returns the outcome of a trial whose process runs `code` before anything else."""
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with Child(setup, "no", on_gpu=False) as child:
        return child.run(4).outcome


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os.kill(os.getpid(), 9)", "out of memory"),  # as the kernel does
        ("import os; os.write(2, b'std::bad_alloc'); os.abort()", "out of memory"),
        ("import time; time.sleep(60)", "timed out"),
    ],
)
def test_a_trial_may_die_or_hang(setup, monkeypatch, tmp_path, code, expected):
    assert outcome(setup, monkeypatch, tmp_path, code) == expected


@pytest.mark.multiprocess
def test_a_trial_that_fails_otherwise_is_an_error_with_its_output(setup, monkeypatch, tmp_path):
    code = "import os; os.write(2, b'no such thing'); os._exit(5)"
    with pytest.raises(RuntimeError, match="code 5:\nno such thing"):
        outcome(setup, monkeypatch, tmp_path, code)


@pytest.mark.multiprocess
def test_where_every_trial_hangs_none_is_found_and_the_time_limit_is_reported(
    setup, monkeypatch, tmp_path
):
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(tmp_path)
    found = find_micro_batches(setup, ("no",), on_gpu=False)
    assert [each.best for each in found] == [None]
    assert "--timeout" in format_micro_batches("large", setup, found)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the data segment")
def test_within_a_memory_limit_the_largest_that_fits_is_printed_as_options(tmp_path):
    limit = 2000 * MIB

    def limit_memory():
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    words = ["doctor", "--find-micro-batch", "--recipe", str(write_recipe(tmp_path, LARGE))]
    words += ["--precisions", "no", "--ranks", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "imagenet_rn50", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        preexec_fn=limit_memory,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    [found] = json.loads(done.stdout)["found"]
    outcomes = {trial["micro_batch"]: trial["outcome"] for trial in found["trials"]}
    best = found["best"]["micro_batch"]
    assert 4 <= best <= 256
    assert outcomes[best] == "fits"
    assert outcomes[2 * best] == "out of memory"
    assert found["best"]["peak_bytes"] < 0.9 * limit == 0.9 * found["best"]["memory_bytes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--find-micro-batch", "--ranks", "3"], "--ranks"),
        (["--find-micro-batch", "--ranks", "0"], "--ranks"),
        (["--find-micro-batch", "--margin", "1"], "--margin"),
        (["--find-micro-batch", "--timeout", "0"], "--timeout"),
        (["--margin", "0.2"], "--find-micro-batch"),
    ],
)
def test_wrong_use_is_refused(refused, words, message):
    assert message in refused(main, "doctor", "--recipe", "digits", *words)


@pytest.mark.gpu
@pytest.mark.multiprocess
def test_on_a_gpu_the_largest_that_fits_leaves_the_margin_free(tmp_path):
    text = LARGE.replace("embedding_size: 16, hidden_sizes: [16]", WIDE)
    recipe = load_recipe(str(write_recipe(tmp_path, text)))
    free, total = torch.cuda.mem_get_info()
    margin = 1 - 4 * 2**30 / total  # 4 GiB to use, on any GPU
    if free < 6 * 2**30:
        pytest.skip("the GPU is in use")
    margin -= (total - free) / total
    found = find_micro_batches(Setup(recipe, 3, 1, margin=margin), ("no", "fp16"), on_gpu=True)
    for each in found:
        assert each.best is not None
        assert each.best.micro_batch > 2
        assert each.best.peak_bytes is not None
        assert each.best.peak_bytes < 4.1 * 2**30
        assert [t.outcome for t in each.trials if t.micro_batch > each.best.micro_batch]
    single, half = (each.best.micro_batch for each in found if each.best)
    assert half >= single
