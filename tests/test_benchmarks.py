"""The benchmarks that make documentation: what they do without a GPU, and what they write."""

import sys

import pytest
import torch

from benchmarks import gpu, tables


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_it_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert "CUDA" in capsys.readouterr().err


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path):
    page = path.read_text(encoding="utf-8")
    assert tables.filled(page) == page


def test_a_table_that_nobody_makes_is_an_error():
    with pytest.raises(KeyError):
        tables.filled("<!-- table unheard-of -->\n<!-- end -->")
