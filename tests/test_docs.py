"""What the documents tell a reader to type can be typed, and what they point to is there."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train_accelerate
from imagenet_rn50.data.loader import MAX_SUBSTITUTIONS
from imagenet_rn50.tools.digits import write_ilsvrc
from tests.commands import DOCUMENTS, ROOT, Command, check, commands_in
from tests.support import write_pets

COMMANDS = [command for document in DOCUMENTS for command in commands_in(document)]
JOURNEY = "demo recipes doctor estimate preview schedule evaluate predict export".split()


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_in_the_documents_is_one_that_its_program_takes(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(command)


@pytest.mark.parametrize(
    "text",
    [
        "python -m imagenet_rn50 doctor --shard data",
        "python shard_imagenet.py pack --source data",
        "python train_accelerate.py --recipe digits --shards s --run r --optimizer.lt 1",
        "accelerate launch --config_file accelerate_configs/none.yaml train_accelerate.py "
        "--shards s --run r",
        "make dinner",
        "aws ec2 run-instances",
        "python examples/predict.py --modle exports/digits",
    ],
)
def test_a_command_that_nobody_takes_is_found(text, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, SystemExit, FileNotFoundError)):
        check(Command(ROOT / "README.md", text, None))


def test_the_guides_have_commands_of_every_kind():
    guide = [command for command in COMMANDS if command.document.name == "ec2.md"]
    assert len(guide) > 30
    assert {"EC2", "the Hub", None} <= {command.needs for command in guide}
    assert any(command.document.name == "README.md" and not command.needs for command in COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_project_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", text):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            page = document.parent / path if path else document
            assert page.exists(), target
            assert not anchor or anchor in anchors_of(page), target


def anchors_of(page):
    """Returns the names under which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings
    }


def test_help_lists_the_verbs_in_the_order_of_the_journey():
    done = subprocess.run(
        [sys.executable, "-m", "imagenet_rn50", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = re.findall(r"• (\w+)", done.stdout)
    assert [verb for verb in listed if verb in JOURNEY] == JOURNEY


def test_help_of_training_says_what_training_does(capsys):
    with pytest.raises(SystemExit):
        train_accelerate.parse(["--help"])
    said = " ".join(re.sub("[│\n]", " ", capsys.readouterr().out).split())
    assert f"at most {MAX_SUBSTITUTIONS} per rank" in said
    assert "each micro batch takes one of them" in said  # mixing is drawn for each
    assert "never decayed" not in said  # --optimizer.decay-norms-and-biases decays them


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_shell_completes_verbs_and_options(tmp_path):
    program = (
        "import sys; sys.argv[0] = 'imagenet-rn50'; from imagenet_rn50.__main__ import main; main()"
    )
    words = [sys.executable, "-c", program, "--tyro-print-completion", "bash"]
    script = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (tmp_path / "completion").write_text(script, encoding="utf-8")
    asked = """
        source "$1"
        COMP_WORDS=(imagenet-rn50 doc); COMP_CWORD=1; _tyro_imagenet_rn50; echo "${COMPREPLY[@]}"
        COMP_WORDS=(imagenet-rn50 estimate --mic); COMP_CWORD=2; _tyro_imagenet_rn50
        echo "${COMPREPLY[@]}"
        complete -p imagenet-rn50
    """
    done = subprocess.run(
        ["bash", "-c", asked, "bash", str(tmp_path / "completion")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "doctor",
        "--micro-batch",
        "complete -F _tyro_imagenet_rn50 imagenet-rn50",
    ]


RUN_ELSEWHERE = {"make", "pip", "mkdir", "cd", "."}  # by .ci/run and test_demo.py, or by nobody
STAND_INS = {"DIR": "data/digits/source", "SHARDS": "data/packed"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_needs_nothing_runs_as_it_is_written(tmp_path):
    """README's path and the guides' commands, one after the other, in a copy of the project."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    write_ilsvrc(tmp_path / "data" / "digits" / "source")
    write_pets(tmp_path / "data" / "pets")
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "ACCELERATE_USE_CPU": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    in_order = sorted(DOCUMENTS, key=lambda document: document.name != "README.md")
    for command in (command for document in in_order for command in commands_in(document)):
        if command.needs or command.words[0] in RUN_ELSEWHERE:
            continue
        text = " ".join(STAND_INS.get(word, word) for word in command.text.split())
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        print(f"{time.monotonic() - began:6.1f} s  {text}")
    evaluation = json.loads((tmp_path / "exports" / "evaluation" / "metrics.json").read_text())
    (first, *_) = evaluation["results"]
    assert first["num_images"] == 360
    assert first["top1"] > 0.9
    card = (tmp_path / "exports" / "digits" / "README.md").read_text()
    assert "<!--metrics.json results.0.top1-->" in card
    own = (tmp_path / "exports" / "pets" / "README.md").read_text()
    assert "<!--metrics.json results.0.top1-->" in own
    assert "--holdout 0.2" in own
