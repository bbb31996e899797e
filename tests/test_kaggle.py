"""deploy/kaggle/: the notebook, in Kaggle's folders, on the digits; and its metadata."""

import hashlib
import json
import os
import shlex
import sys

import pytest

from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from tests.commands import ROOT, Command, check

KAGGLE = ROOT / "deploy" / "kaggle"
NOTEBOOK = KAGGLE / "imagenet_rn50.ipynb"
# What `kaggle datasets create` uploads becomes an input of the next session.
UPLOAD = """\
#!/bin/sh
echo "$@" >> {told}
[ "$1 $2 $3" = "datasets create --path" ] || exit 1
for archive in "$4"/*.tar "$4"/*.npz "$4"/*.zip; do [ ! -e "$archive" ] || exit 1; done
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


RECORD = """\
#!/bin/sh
for word in "$@"; do printf '%s\\0' "$word" >> {log}; done
echo >> {log}
"""


def test_the_cells_run_commands_that_our_programs_take(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(RECORD.format(log=log))
    python.chmod(0o755)
    python.with_name("kaggle").symlink_to(python)
    settings = {"KAGGLE_KEY": "key", "PROJECT": ROOT, "PYTHON": python}
    settings |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RECIPE": "digits"}
    settings |= {name: tmp_path / name.lower() for name in ("INPUT", "WORKING", "SCRATCH")}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    for name in ("SHARDS", "CONFIG"):  # Kaggle sets neither
        monkeypatch.delenv(name, raising=False)
    train = tmp_path / "input" / "imagenet" / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    for wnid in ("n01440764", "n01443537"):
        (train / wnid).mkdir(parents=True)
        for number in range(3):
            (train / wnid / f"{number}.JPEG").touch()
    (tmp_path / "input" / "imagenet" / "LOC_synset_mapping.txt").touch()
    (tmp_path / "scratch" / "dataset").mkdir(parents=True)

    def commands():
        """Run all cells in this process; return the commands that they ran, as they are typed."""
        log.write_text("")
        names: dict[str, object] = {}
        for cell in sources(json.loads(NOTEBOOK.read_text(encoding="utf-8"))):
            exec("".join(cell["source"]), names)
        lines = [line.rstrip("\0").split("\0") for line in log.read_text().splitlines()]
        launched = ["-m", "accelerate.commands.launch"]
        found = [
            ["accelerate", "launch", *words[2:]] if words[:2] == launched else ["python", *words]
            for words in lines
        ]
        return [shlex.join(words) for words in found]

    *packing, uploading = commands()
    assert [" --resize short=256 " in line for line in packing] == [True, False, False, False, True]
    assert uploading.startswith("python datasets create --path ")

    (tmp_path / "input" / "shards").mkdir()
    (tmp_path / "input" / "shards" / "manifest-train.npz.bin").touch()
    run = tmp_path / "working" / "run"
    (training,) = commands()
    assert f"--run {run}" in training

    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.yaml").write_text("epochs: 2\n")
    (run / "metrics.jsonl").write_text('{"kind": "validation", "epoch": 2.0}\n')
    publishing = commands()
    assert ["export", "evaluate", "export"] == [shlex.split(line)[3] for line in publishing]
    for line in (*packing, training, *publishing):
        check(Command(NOTEBOOK, line, None))


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
    assert {path.suffix for path in dataset.iterdir()} == {".bin", ".json", ".md"}

    stopped, working = version("second", "--stop-at-step 5")
    assert "Not finished" in stopped
    assert not (working / "model").exists()
    working.rename(inputs / "imagenet-rn50")  # the output of this version is an input of the next

    finished, working = version("third", "")
    assert "\nfinished" in finished
    assert Manifest.load(working.parent / "temp" / "shards").split(TRAIN).num_samples == 1437
    starts = [line["samples_seen"] for line in read_metrics(working / "run", "start")]
    assert starts == [0, 5 * 128]
    assert {line["world_size"] for line in read_metrics(working / "run", "start")} == {2}
    (first, *_) = json.loads((working / "evaluation" / "metrics.json").read_text())["results"]
    assert first["num_images"] == 360
    assert (working / "model" / "model.safetensors").is_file()
    assert told.read_text().count("\n") == 1
