"""deploy/kaggle/: the notebook, in Kaggle's folders, on the digits; and its metadata."""

import hashlib
import json
import os
import sys

import pytest

from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from tests.commands import ROOT

KAGGLE = ROOT / "deploy" / "kaggle"
NOTEBOOK = KAGGLE / "imagenet_rn50.ipynb"
# What `kaggle datasets create` uploads becomes an input of the next session.
UPLOAD = """\
#!/bin/sh
echo "$@" >> {told}
[ "$1 $2 $3" = "datasets create --path" ] || exit 1
mkdir -p {inputs}/imagenet-shards && cp "$4"/* {inputs}/imagenet-shards/
rm {inputs}/imagenet-shards/dataset-metadata.json
"""


def sources(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_shipped_without_outputs_and_names():
    text = NOTEBOOK.read_text(encoding="utf-8")
    for cell in sources(json.loads(text)):
        assert (cell["execution_count"], cell["outputs"]) == (None, [])
    assert "MY_KAGGLE_NAME" in text


def test_the_metadata_has_what_kaggle_asks_for_and_the_notebooks_own_output():
    metadata = json.loads((KAGGLE / "kernel-metadata.json").read_text(encoding="utf-8"))
    assert (KAGGLE / metadata["code_file"]).is_file()
    assert metadata["id"].split("/")[1] == metadata["title"].lower().replace(" ", "-")
    assert (metadata["language"], metadata["kernel_type"]) == ("python", "notebook")
    assert metadata["is_private"] is metadata["enable_gpu"] is metadata["enable_internet"] is True
    assert metadata["kernel_sources"] == [metadata["id"]]
    assert metadata["competition_sources"] == ["imagenet-object-localization-challenge"]
    text = NOTEBOOK.read_text(encoding="utf-8")
    (dataset,) = metadata["dataset_sources"]
    assert dataset == "MY_KAGGLE_NAME/imagenet-shards"
    assert "{KAGGLE_NAME}/imagenet-shards" in text
    assert load_recipe("rn50-16ep-16gb").accumulation(2) > 0
    assert "rn50-16ep-16gb" in text


def contents(folder):
    """Return the hash of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")  # of the notebook's own libraries
def test_three_versions_pack_train_resume_and_export_the_digits(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    from imagenet_rn50.tools.digits import write_ilsvrc

    inputs, programs = tmp_path / "input", tmp_path / "bin"
    write_ilsvrc(inputs / "imagenet-object-localization-challenge")
    programs.mkdir()
    told = tmp_path / "told"
    (programs / "kaggle").write_text(UPLOAD.format(told=told, inputs=inputs))
    (programs / "kaggle").chmod(0o755)
    recipe = tmp_path / "digits.yaml"
    recipe.write_text(load_recipe("digits").model_copy(update={"epochs": 4}).to_yaml())
    settings = {
        "INPUT": inputs,
        "KAGGLE_NAME": "me",
        "KAGGLE_KEY": "key",
        "PROJECT": ROOT,
        "PYTHON": sys.executable,
        "RECIPE": recipe,
        "ACCELERATE_USE_CPU": 1,  # two ranks, as on two GPUs
        "OMP_NUM_THREADS": 1,
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))

    def version(name, time_limit):
        """Run all cells in a new session; return its outputs' text and its working folder."""
        working = tmp_path / name / "working"
        working.mkdir(parents=True)
        session = {"WORKING": working, "SCRATCH": working.parent / "temp", "TIME_LIMIT": time_limit}
        for key, value in session.items():
            monkeypatch.setenv(key, str(value))
        before = contents(inputs)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
        assert before.items() <= contents(inputs).items()  # inputs are mounted read-only
        cells = [output.get("text", "") for cell in sources(notebook) for output in cell["outputs"]]
        return "".join(cells), working

    packed, working = version("first", "")
    assert "short=256" in packed
    assert "computed" in packed
    assert list(working.iterdir()) == []
    assert "--public" not in told.read_text()
    dataset = inputs / "imagenet-shards"
    assert len(list(dataset.iterdir())) < 50
    assert Manifest.load(dataset).split(TRAIN).num_samples == 1437

    stopped, working = version("second", "--stop-at-step 5")
    assert "Not finished" in stopped
    assert not (working / "model").exists()
    working.rename(inputs / "imagenet-rn50")  # the output of this version is an input of the next

    finished, working = version("third", "")
    assert "\nfinished" in finished
    starts = [line["samples_seen"] for line in read_metrics(working / "run", "start")]
    assert starts == [0, 5 * 128]
    assert {line["world_size"] for line in read_metrics(working / "run", "start")} == {2}
    (first, *_) = json.loads((working / "evaluation" / "metrics.json").read_text())["results"]
    assert first["num_images"] == 360
    assert (working / "model" / "model.safetensors").is_file()
    assert told.read_text().count("\n") == 1
