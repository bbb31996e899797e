"""The benchmarks that make documentation: what they do without a GPU, and what they write."""

import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import figures, gpu, tables
from imagenet_rn50.shards.lossless import is_installed

COMMITTED = figures.Arguments().out
OF_THE_CODE = ("loaders", "order", "resume", "restart_markers")  # the others show the demo


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_it_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert "CUDA" in capsys.readouterr().err


def test_sections_that_are_measured_later_replace_only_themselves():
    about = {"command": "all", "date": "2026-01-01", "seconds": 500, "torch": "2.14.1"}
    earlier: dict[str, Any] = {
        "about": about,
        "sections": {"batch": [{"micro_batch": 64}], "tests": [], "loop": []},
        "not_run": {"tests": "time was up", "loop": "no time was left"},
    }
    later: dict[str, Any] = {
        "about": about | {"command": "some", "date": "2026-01-02", "seconds": 90},
        "sections": {"tests": [{"summary": "5 passed"}]},
        "not_run": {},
    }
    both = gpu.merged(earlier, later)
    assert both["sections"] == earlier["sections"] | later["sections"]
    assert both["not_run"] == {"loop": "no time was left"}
    assert both["about"] == about | {"later": ["some, 2026-01-02, 90 s"]}


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path):
    page = path.read_text(encoding="utf-8")
    assert tables.filled(page) == page


def test_a_table_that_nobody_makes_is_an_error():
    with pytest.raises(KeyError):
        tables.filled("<!-- table unheard-of -->\n<!-- end -->")


def assert_is_committed(name, folder):
    """Compare sizes and words; pixels depend on the fonts of the machine."""
    drawn, committed = folder / f"{name}.png", COMMITTED / f"{name}.png"
    with Image.open(drawn) as ours, Image.open(committed) as theirs:
        assert ours.size == theirs.size
    assert figures.labels_of(drawn) == figures.labels_of(committed)


@pytest.mark.parametrize("name", OF_THE_CODE)
def test_figures_are_those_of_the_code_and_the_results(name, tmp_path):
    if name == "restart_markers" and not is_installed():
        pytest.skip("needs jpegtran")
    figures.FIGURES[name](tmp_path / f"{name}.png")
    assert_is_committed(name, tmp_path)


def test_figures_are_small_and_each_is_shown():
    shown = "".join(page.read_text(encoding="utf-8") for page in tables.ROOT.glob("*.md"))
    shown += "".join(page.read_text(encoding="utf-8") for page in tables.ROOT.glob("docs/*.md"))
    for name in figures.FIGURES:
        path = COMMITTED / f"{name}.png"
        assert path.stat().st_size < 250_000, path
        assert f"figures/{path.name}" in shown, path


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_figures_of_the_demo_are_those_of_the_demo(tmp_path):
    demo = [sys.executable, "-m", "imagenet_rn50", "demo"]
    subprocess.run(demo, cwd=tables.ROOT, check=True)
    of_the_demo = [name for name in figures.FIGURES if name not in OF_THE_CODE]
    draw = [sys.executable, "-m", "benchmarks.figures", "--out", str(tmp_path), "--only"]
    subprocess.run([*draw, *of_the_demo], cwd=tables.ROOT, check=True)
    for name in of_the_demo:
        assert_is_committed(name, tmp_path)
