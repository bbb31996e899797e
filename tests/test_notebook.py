"""examples/quickstart.ipynb runs as it is, from its first cell to its last."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.commands import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
MOST_BYTES = 500_000


def outputs_of(notebook):
    return [
        output
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
    ]


def test_the_kept_outputs_are_small_complete_and_of_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {kind for output in outputs_of(notebook) for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert not [o for o in outputs_of(notebook) if o["output_type"] == "error"]
    assert not re.search(r"(?<![\w.{}])/(home|root|tmp|work|usr|Users|opt)/", text)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")  # of the notebook's own libraries
def test_every_cell_runs_inside_the_repository_and_the_run_resumes(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("QUICKSTART_FOLDER", os.path.relpath(tmp_path, ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(Path(NOTEBOOK).parent)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    starts = [line for line in map(json.loads, lines) if line["kind"] == "start"]
    assert [line["samples_seen"] for line in starts] == [0, 60 * 128]
    (first, *_) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["results"]
    assert first["num_images"] == 360
    assert first["top1"] > 0.95
    assert (tmp_path / "exported" / "model.safetensors").is_file()
