"""The benchmarks that make documentation: what they do without a GPU, and what they write."""

import subprocess
import sys

import pytest
import torch

from benchmarks import tables
from tests.commands import ROOT


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_it_needs_a_gpu():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "CUDA" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path):
    page = path.read_text(encoding="utf-8")
    assert tables.filled(page) == page


def test_a_table_that_nobody_makes_is_an_error():
    with pytest.raises(KeyError):
        tables.filled("<!-- table unheard-of -->\n<!-- end -->")
