"""Pushing with the real client to a Hub on loopback.

A first upload, and one that breaks off, run in a process of their own, as users run them: what it
writes and starts is looked at, too. Others run in this one, which has imported what takes a new
process seconds.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoImageProcessor, AutoModelForImageClassification

from imagenet_rn50.__main__ import main
from imagenet_rn50.publishing.export import export
from imagenet_rn50.publishing.hub import Target, push, stage_model
from imagenet_rn50.publishing.layout import EVAL_RESULTS
from imagenet_rn50.publishing.snippets import FROM_HERE
from imagenet_rn50.utils.errors import InputError
from tests.hub import TOKEN, serving_hub, use_hub
from tests.publishing.runs import make_run, save_checkpoint, thousand_classes

ROOT = Path(__file__).parents[2]
# Waits for each child and writes down with which arguments every process was started.
WATCHED = """
import runpy, sys
def audit(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
        print("started", arguments, file=sys.stderr)
sys.addaudithook(audit)
sys.argv = ["imagenet_rn50", *sys.argv[1:]]
runpy.run_module("imagenet_rn50", run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("pushed")
    splits = ["train", "validation"]  # so that there is a result for the Hub's leaderboard
    run = make_run(folder, shards, classes=thousand_classes(), imagenet1k_splits=splits)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, folder / "out")
    return folder / "out"


@pytest.fixture
def hub():
    with serving_hub() as hub:
        yield hub


def environment(hub, home, token):
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    settings |= {"PYTHONPATH": str(ROOT), "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | settings | ({"HF_TOKEN": token} if token else {})


def push_in_a_process(hub, exported, home, *options):
    command = [sys.executable, "-c", WATCHED, "push", "--model", exported, "--to", "user/model"]
    return subprocess.run(
        [*command, *options],
        cwd=home,
        env=environment(hub, home, TOKEN),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def pushing(hub, exported, monkeypatch, capfd):
    """Runs the command in this process; returns its exit code and output."""
    use_hub(hub, monkeypatch)

    def pushing(*options, model=exported, token=TOKEN):
        monkeypatch.setenv("HF_TOKEN", token or "")
        words = ["imagenet_rn50", "push", "--model", str(model), "--to", "user/model", *options]
        monkeypatch.setattr(sys, "argv", words)
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capfd.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return pushing


def error_of(done):
    """The message that a person reads, without what the client logs on the way."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr[done.stderr.index("error: ") :]


@pytest.mark.multiprocess
def test_model_and_space_arrive_whole_pinned_and_load_again(hub, exported, tmp_path, monkeypatch):
    done = push_in_a_process(hub, exported, tmp_path, "--space", "user/show", "--private")
    assert done.returncode == 0, done.stderr
    revision, model = hub.repos["models/user/model"].at("main")
    for path in exported.rglob("*"):
        name = path.relative_to(exported).as_posix()
        if path.is_file() and name not in {"README.md", EVAL_RESULTS}:
            assert model[name] == path.read_bytes(), name
    card = model["README.md"].decode()
    assert 'pipeline("image-classification", model="user/model")' in card
    assert "instead of the dot" not in card
    here = card.replace("alone:", f"alone{FROM_HERE}:")
    here = here.replace("  url = {https://huggingface.co/user/model},\n", "")
    here = here.replace('model="user/model"', 'model="."')
    here = here.replace('model_id = "user/model"', 'model_id = "."')
    assert here == (exported / "README.md").read_text()
    assert b"https://huggingface.co/user/model/blob/main/metrics.jsonl" in model[EVAL_RESULTS]

    _, space = hub.repos["spaces/user/show"].at("main")
    assert json.loads(space["model.json"]) == {"model_id": "user/model", "revision": revision}
    assert space["app.py"] == (ROOT / "app" / "app.py").read_bytes()
    assert b"models:\n- user/model\n" in space["README.md"]
    assert not any("__pycache__" in name for name in space)
    created = hub.repos["models/user/model"].created, hub.repos["spaces/user/show"].created
    assert [each["visibility"] for each in created] == ["private", "private"]
    assert created[1]["sdk"] == "gradio"
    assert f"user/model/tree/{revision}" in done.stdout

    use_hub(hub, monkeypatch)
    there = {"revision": revision, "cache_dir": tmp_path / "cache", "token": TOKEN}
    loaded = AutoModelForImageClassification.from_pretrained("user/model", **there).state_dict()
    expected = AutoModelForImageClassification.from_pretrained(exported).state_dict()
    torch.testing.assert_close(loaded, expected, rtol=0, atol=0)
    assert AutoImageProcessor.from_pretrained("user/model", **there).crop_size["height"] == 16
    nowhere(TOKEN, tmp_path, done)


def nowhere(token, folder, *processes):
    """The token is in no output, no file, and no argument of a process that was started."""
    for done in processes:
        assert token not in done.stdout + done.stderr
    for path in folder.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path


@pytest.mark.multiprocess
@pytest.mark.filterwarnings("ignore:Use 'content")  # httpx, of the Hub's client
def test_a_push_that_broke_off_goes_on_and_sends_nothing_twice(hub, exported, pushing, tmp_path):
    hub.broken = ["/blobs/", "/commit/"]  # a line that drops once, which is tried again; then a cut
    first = push_in_a_process(hub, exported, tmp_path)
    message = error_of(first)
    assert message.startswith("error: the push was interrupted\n")
    assert "fix:      run the same command again" in message
    assert len(hub.repos["models/user/model"].commits) == 1  # nobody sees half a model
    assert len(hub.sent("PUT", "/blobs/")) == 2
    second = pushing()
    assert second.returncode == 0, second.stderr
    assert len(hub.sent("PUT", "/blobs/")) == 2
    third = pushing()
    assert third.returncode == 0, third.stderr
    assert len(hub.repos["models/user/model"].commits) == 2  # the same again changes nothing

    other = tmp_path / "other"
    stage_model(exported, "user/model", other)
    (other / "model.safetensors").unlink()
    (other / "onnx").mkdir()
    (other / "onnx" / "model.onnx").write_bytes(b"a graph")
    (other / EVAL_RESULTS).unlink()
    theirs = {"LICENSE": b"put there by hand", "metrics.json": b"of other weights"}
    theirs[".eval_results/hle.yaml"] = b"a result by somebody else"
    hub.repos["models/user/model"].commit(theirs)
    fourth = pushing(model=other)
    assert fourth.returncode == 0, fourth.stderr
    _, files = hub.repos["models/user/model"].at("main")
    assert {"onnx/model.onnx", "LICENSE", ".eval_results/hle.yaml"} <= set(files)
    assert not {"model.safetensors", "metrics.json", EVAL_RESULTS} & set(files)
    nowhere(TOKEN, tmp_path, first, second, third, fourth)


def test_no_token_a_wrong_one_and_one_that_may_not_write_get_one_clear_message(
    hub, pushing, tmp_path
):
    missing = pushing(token=None)
    assert error_of(missing).startswith("error: no Hub token is set\n")
    assert hub.sent("POST", "") == []

    wrong = pushing(token="hf_someoneElsesSecret")
    assert error_of(wrong).startswith("error: the Hub does not accept the token\n")
    nowhere("hf_someoneElsesSecret", tmp_path, wrong)

    broken = pushing(token="hf_Secret with\tspace")
    assert "invalid characters" in error_of(broken)
    nowhere("hf_Secret", tmp_path, broken)

    hub.may_write = False
    reader = pushing()
    assert error_of(reader).startswith("error: the token has no write access to user/model\n")
    assert hub.repos == {}
    nowhere(TOKEN, tmp_path, reader)


def test_a_dry_run_lists_files_and_sizes_and_asks_nobody(hub, exported, pushing, tmp_path):
    done = pushing("--space", "user/show", "--dry-run", token=None)
    assert done.returncode == 0, done.stderr
    size = (exported / "metrics.jsonl").stat().st_size
    assert f"{size / 1e3:.1f} kB  metrics.jsonl\n" in done.stdout
    assert "kB  model.json\n" in done.stdout
    assert "nothing was uploaded" in done.stdout
    assert hub.sent("POST", "") == []


def test_what_is_no_exported_model_or_no_id_is_not_pushed(exported, tmp_path):
    def copy(*left_out):
        folder = tmp_path / "-".join(left_out)
        stage_model(exported, "user/model", folder)
        for name in left_out:
            (folder / name).unlink()
        return folder

    model = Target("user/model")
    with pytest.raises(InputError, match=r"found:    no preprocessor_config\.json\n"):
        push(copy("preprocessor_config.json"), model, dry_run=True)
    with pytest.raises(InputError, match=r"no model\.safetensors or resnet50"):
        push(copy("model.safetensors"), model, dry_run=True)
    other = copy("model.safetensors", "recipe.yaml")
    (other / "onnx").mkdir()
    (other / "onnx" / "model.onnx").write_bytes(b"a graph")
    push(other, model, dry_run=True)
    with pytest.raises(InputError, match="an export for transformers"):
        push(other, Target("user/model", "user/show"), dry_run=True)
    with pytest.raises(InputError, match="no such folder"):
        push(tmp_path / "nowhere", model, dry_run=True)
    for wrong in ("model", "a/b/c", "user/mo del"):
        with pytest.raises(InputError, match="is not a Hub id"):
            push(exported, Target(wrong), dry_run=True)
    with pytest.raises(InputError, match="there is no Space in"):
        push(exported, Target("user/model", "user/show", app=tmp_path), dry_run=True)


def test_a_card_with_a_number_from_nowhere_is_pointed_out(exported, tmp_path, capsys):
    stage_model(exported, "user/model", tmp_path / "model")
    card = tmp_path / "model" / "README.md"
    card.write_text(card.read_text().replace("## Limits", "99.9% right\n\n## Limits"))
    push(tmp_path / "model", Target("user/model"), dry_run=True)
    assert "warning: card: line" in capsys.readouterr().out


@pytest.mark.parametrize("wrapped", [False, True])
def test_whatever_breaks_shows_no_token(exported, monkeypatch, wrapped):
    def broken(self, **options):
        try:
            raise ConnectionError(f"Illegal header value b'Bearer {TOKEN}'")
        except ConnectionError as error:
            if not wrapped:
                raise
            raise RuntimeError("Error while uploading") from error

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", broken)
    with pytest.raises(InputError, match=r"Bearer \*\*\*'") as caught:
        push(exported, Target("user/model"))
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def answered(status):
    return HfHubHTTPError(f"answer {status}", response=Mock(status_code=status, headers={}))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answered(400), "the Hub refuses the upload\n  found:    answer 400$"),
        (answered(429), "the push was interrupted\n.*answer 429\n.*again"),
        (answered(500), "the push was interrupted\n.*answer 500\n.*again"),
        (
            ValueError("Invalid metadata in README.md.\n- no such license"),
            "refuses.*\n.*no such lic",
        ),
        (
            json.JSONDecodeError("a proxy's page", "<html>", 0),
            "the push was interrupted\n.*proxy's page",
        ),
    ],
    ids=["refused", "too many", "broken", "metadata", "a proxy"],
)
def test_only_what_may_pass_is_to_be_tried_again(exported, monkeypatch, error, message):
    def raised(self, **options):
        raise error from OSError("what the client's client said")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", raised)
    with pytest.raises(InputError, match=message):
        push(exported, Target("user/model"))


@pytest.mark.parametrize("before", ["export HF_TOKEN=", "x" * (2**22 - 5)])
def test_a_token_in_a_file_stays_here(exported, tmp_path, monkeypatch, before):
    stage_model(exported, "user/model", tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text(f"{before}{TOKEN}\n")
    (tmp_path / "model" / ".env").write_text(f"HF_TOKEN={TOKEN}")  # hidden: not sent anyway
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match=r"notes\.txt holds the Hub token") as caught:
        push(tmp_path / "model", Target("user/model"))
    assert TOKEN not in str(caught.value)
