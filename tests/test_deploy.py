"""The files that machines are set up with: they are what their readers take them for."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

import train_accelerate
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.tools.prices import load_prices
from tests.commands import ROOT, Command, check
from tests.support import write_recipe, write_shards
from tests.training.trainers import RECIPE, lines_of, wait_until

DEPLOY = ROOT / "deploy"
SERVICE = DEPLOY / "imagenet-rn50.service"
PROJECT = "/opt/imagenet_rn50"


def settings(path: Path) -> dict[str, str]:
    """Returns the KEY=value lines of a unit or an environment file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def test_the_service_runs_a_command_that_accelerate_and_the_script_take(monkeypatch):
    monkeypatch.chdir(ROOT)
    line = settings(SERVICE)["ExecStart"]
    for key, value in settings(DEPLOY / "imagenet-rn50.env").items():
        line = line.replace(f"${{{key}}}", value).replace(f"${key}", value)
    program, *rest = shlex.split(line)
    assert program == f"{PROJECT}/.venv/bin/accelerate"
    assert "$" not in line
    check(Command(SERVICE, shlex.join(["accelerate", *rest]), None))


def test_the_service_starts_again_after_a_failure_and_gives_up_in_the_end():
    unit = settings(SERVICE)
    assert not starts_again(unit, 0)
    assert all(starts_again(unit, code) for code in (1, 75, 143, -signal.SIGTERM, -signal.SIGKILL))
    assert int(unit["StartLimitBurst"]) * int(unit["RestartSec"]) < int(
        unit["StartLimitIntervalSec"]
    )
    assert unit["KillMode"] == "control-group"
    assert unit["WantedBy"] == "multi-user.target"


def starts_again(unit, code):
    """Says what systemd makes of an exit code of subprocess, by Restart=on-failure.

    Clean are 0 and death by one of four signals (systemd.service(5)), unless they are forced.
    """
    assert unit["Restart"] == "on-failure"
    forced = unit["RestartForceExitStatus"].split()
    if code < 0 and signal.Signals(-code).name in forced or str(code) in forced:
        return True
    clean = {0, *(-number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))}
    return code not in clean | {-signal.SIGPIPE}


def run_as_systemd(key, **environment):
    """Runs a line of the unit with /bin/sh as its program; returns its exit code."""
    line = settings(SERVICE)[key].removeprefix("+").replace("$$", "$").replace("%n", SERVICE.name)
    return subprocess.run(shlex.split(line), env=environment, check=False).returncode


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a copy that was broken off"])
def test_the_service_copies_the_shards_anew_where_a_stop_has_emptied_the_nvme(tmp_path, there):
    kept, shards = tmp_path / "kept", tmp_path / "nvme" / "shards"
    manifest = write_shards(kept, train=[2], validation=[1])
    shards.parent.mkdir()
    if there != "nothing":
        (shards if "empty" in there else shards.with_name("shards.part")).mkdir()
    names = {"SHARDS": str(shards), "KEPT_SHARDS": str(kept), "PATH": os.environ["PATH"]}
    assert run_as_systemd("ExecStartPre", **names) == 0
    assert Manifest.load(shards).splits.keys() == manifest.splits.keys()
    assert {p.name for p in shards.iterdir()} == {p.name for p in kept.iterdir()}
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]

    (shards / "mark").touch()
    assert run_as_systemd("ExecStartPre", **names) == 0  # what is there stays
    assert (shards / "mark").exists()
    assert settings(SERVICE)["TimeoutStartSec"] == "infinity"
    assert "dlami-nvme.service" in settings(SERVICE)["After"].split()


def test_what_cannot_be_copied_fails_and_what_stands_in_a_bucket_is_not(tmp_path):
    names = {"SHARDS": str(tmp_path / "shards"), "PATH": os.environ["PATH"]}
    assert run_as_systemd("ExecStartPre", **names, KEPT_SHARDS=str(tmp_path / "none")) != 0
    assert not (tmp_path / "shards").exists()
    names["SHARDS"] = "s3://bucket/imagenet"
    assert run_as_systemd("ExecStartPre", **names, KEPT_SHARDS="") == 0


@pytest.mark.parametrize(
    ("result", "status", "asked"),
    [
        ("success", "0", ["disable --no-reload imagenet-rn50.service"]),
        ("success", "TERM", []),  # systemctl stop
        ("exit-code", "75", []),
        ("signal", "KILL", []),
        ("timeout", "0", []),
        ("exit-code", "", []),  # the copy failed
    ],
)
def test_the_service_disables_itself_after_a_finished_run_alone(tmp_path, result, status, asked):
    stand_in, told = tmp_path / "systemctl", tmp_path / "told"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    stand_in.chmod(0o755)
    names = {"SERVICE_RESULT": result, "EXIT_STATUS": status, "PATH": str(tmp_path)}
    assert run_as_systemd("ExecStopPost", **names) == 0
    assert (told.read_text().splitlines() if told.exists() else []) == asked


def section(number):
    """The text of a section of the guide to EC2."""
    return re.split(r"^## ", (ROOT / "docs" / "ec2.md").read_text(), flags=re.M)[number]


def test_the_guide_copies_shards_into_a_folder_of_roots_after_each_stop(tmp_path):
    kept, nvme = tmp_path / "data" / "shards", tmp_path / "nvme"
    write_shards(kept, train=[2], validation=[1])
    lines = [line for line in section(3).splitlines() if "/opt/dlami/nvme" in line]
    text = "\n".join(lines).replace("/opt/dlami/nvme", str(nvme)).replace("/data", str(kept.parent))
    assert text.startswith("sudo install -d -o ubuntu ")
    stand_in = 'sudo() { [ "$1 $2 $3 $4" = "install -d -o ubuntu" ] && mkdir -p "${@:5}"; }\n'
    for _ in range(2):  # the second as if something were left
        subprocess.run(["bash", "-ec", stand_in + text], check=True)
        assert {p.name for p in (nvme / "shards").iterdir()} == {p.name for p in kept.iterdir()}
    assert "sudo install -d -o ubuntu /opt/dlami/nvme/cache" in section(7)


def test_the_guide_keeps_a_machine_on_whose_service_would_power_it_off(tmp_path):
    lines = re.search(r"```bash\n(sudo systemctl disable.*?)```", section(10), re.S)
    assert lines
    unit = tmp_path / SERVICE.name
    unit.write_text(re.sub("^# (?=.*=poweroff)", "", SERVICE.read_text(), flags=re.M))
    assert settings(unit).keys() >= {"SuccessAction", "FailureAction"}
    text = lines[1].replace(f"/etc/systemd/system/{SERVICE.name}", str(unit))
    stand_in = 'sudo() { [ "$1" = systemctl ] && echo "$2" || "$@"; }\n'
    done = subprocess.run(["bash", "-c", stand_in + text], capture_output=True, check=True)
    assert done.stdout.split() == [b"disable", b"daemon-reload", b"stop"]
    assert unit.read_text() == SERVICE.read_text()


def test_the_price_of_each_command_is_that_of_its_market():
    price = load_prices().instances["g6.12xlarge"]
    assert "--instance-market-options MarketType=spot" in section(7)
    assert f"--price-per-hour {price.spot:.2f}\n" in section(7)
    assert f"{price.spot:.2f} instead of {price.on_demand:.2f}" in section(7)
    more = settings(DEPLOY / "imagenet-rn50.env")["MORE"]
    assert more.endswith(f"--price-per-hour {price.on_demand:.2f}")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_the_service_started_again_after_each_kill_ends_with_a_finished_run(tmp_path):
    """What its ExecStart runs, under a stand-in for systemd."""
    write_shards(tmp_path / "shards", train=[30, 31, 22], validation=[6, 15])
    recipe = write_recipe(tmp_path, RECIPE)
    unit, run = settings(SERVICE), tmp_path / "run"
    values = {"CONFIG": "accelerate_configs/cpu.yaml", "RECIPE": str(recipe), "RUN": str(run)}
    values |= {"SHARDS": str(tmp_path / "shards"), "MORE": "--workers 1 --checkpoint-steps 1"}
    values["MORE"] += f" --sync {tmp_path / 'elsewhere'}"
    line = unit["ExecStart"]
    for key, value in values.items():
        line = line.replace(f"${{{key}}}", value).replace(f"${key}", value)
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    words = launch + shlex.split(line)[2:]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    codes, kills = [], [signal.SIGTERM, signal.SIGKILL, None]
    for number in kills:
        num_lines = len(lines_of(run, None))
        process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
        if number is not None:
            wait_until(lambda before=num_lines: len(lines_of(run, None)) > before + 2)
            os.killpg(process.pid, number)
        codes.append(process.wait())
        wait_until(lambda group=process.pid: not is_running(group))  # as systemd waits
        assert starts_again(unit, codes[-1]) == (number is not None), codes
    starts = [line["samples_seen"] for line in read_metrics(run, "start")]
    assert starts == sorted(set(starts))
    assert len(starts) == len(kills)
    assert read_metrics(run, "validation")[-1]["epoch"] >= 10
    assert (tmp_path / "elsewhere" / "logs.md").read_text() == (run / "logs.md").read_text()


def is_running(group):
    """Says whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_understands_every_line_of_the_service(tmp_path):
    program = tmp_path / ".venv" / "bin" / "accelerate"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / SERVICE.name

    def complaints(text):
        copy.write_text(text.replace(PROJECT, str(tmp_path)), encoding="utf-8")
        done = subprocess.run(
            ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
        )
        return [line for line in done.stderr.splitlines() if SERVICE.name in line]

    text = SERVICE.read_text(encoding="utf-8")
    assert complaints(text) == []
    assert complaints(text.replace("KillMode", "KilMode")), "it says so when it does not"


SPOT_JOBS = ["skypilot.yaml", "skypilot_hf.yaml"]


@pytest.mark.parametrize("name", SPOT_JOBS)
def test_the_spot_job_runs_commands_that_our_programs_take(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    assert job["resources"]["use_spot"] is True
    launches = [line for line in job["run"].splitlines() if line.startswith("accelerate")]
    line = launches[0].partition(" || ")[0]
    for key, value in job["envs"].items():
        line = line.replace(f"${key}", value or "bucket")
    assert "$" not in line
    check(Command(DEPLOY / name, line, None))


@pytest.mark.parametrize("name", SPOT_JOBS)
@pytest.mark.parametrize(("code", "slept"), [(0, ""), (1, "150")])
def test_the_spot_job_ends_after_its_machine_when_the_run_was_told_to_end(name, code, slept):
    job = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    stand_ins = f"conda() {{ :; }}; accelerate() {{ return {code}; }}; sleep() {{ echo $1; }}\n"
    done = subprocess.run(
        ["bash", "-c", stand_ins + job["run"]], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (code, slept)


def test_the_spot_job_installs_the_pinned_way_to_s3():
    job = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text(encoding="utf-8"))
    pinned = re.search(r"^s3fs==\S+$", (ROOT / "requirements-dev.txt").read_text(), re.M)
    assert pinned
    assert pinned[0] in job["setup"]


def test_the_job_on_the_hubs_storage_mounts_the_shards_and_syncs_to_a_bucket():
    job = yaml.safe_load((DEPLOY / "skypilot_hf.yaml").read_text(encoding="utf-8"))
    mount = job["file_mounts"]["/shards"]
    assert (mount["store"], mount["source"]) == ("hf", "hf://datasets/${DATASET}")
    assert "--shards /shards " in job["run"]
    assert "--sync hf://buckets/$BUCKET/" in job["run"]
    assert job["secrets"] == {"HF_TOKEN": None}  # a value would be in the repository


def lines_of_dockerfile():
    """Returns the instructions of the Dockerfile: a name and what follows it."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_image_is_pinned_and_has_neither_root_nor_secrets():
    lines = lines_of_dockerfile()
    bases = [rest for name, rest in lines if name == "FROM"]
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    assert {name for name, _ in lines} <= {
        *("FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT")
    }  # no ARG, whose values stay in the image, and no ADD
    assert not [rest for _, rest in lines if re.search("token|secret|password|_key", rest, re.I)]
    users = [rest for name, rest in lines if name == "USER"]
    assert users == ["1000"]
    names = [name for name, _ in lines]
    assert names.index("USER") < names.index("ENTRYPOINT")
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line for line in pins if line and not line.startswith("#"))


@pytest.mark.skipif(
    shutil.which("hadolint", path=Path(sys.executable).parent) is None, reason="needs hadolint"
)
def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path):
    hadolint = str(Path(sys.executable).parent / "hadolint")

    def complaints(path):
        return subprocess.run([hadolint, path], capture_output=True, check=False).stdout

    assert complaints(DEPLOY / "Dockerfile") == b""
    worse = tmp_path / "Dockerfile"
    worse.write_text("FROM python\nRUN cd /tmp\n", encoding="utf-8")
    assert complaints(worse), "it says so when there is something"


@pytest.mark.parametrize(("gpus", "program"), [("1", "python"), ("4", "accelerate")])
def test_the_image_starts_a_command_that_our_programs_take(gpus, program, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("python", "accelerate"):
        (tmp_path / name).write_text('#!/bin/sh\nfor word in "$0" "$@"; do echo "$word"; done\n')
        (tmp_path / name).chmod(0o755)
    (_, entry) = next(line for line in lines_of_dockerfile() if line[0] == "ENTRYPOINT")
    given = ["--recipe", "rn50-16ep", "--shards", "/my shards", "--run", "/runs/a"]
    started = subprocess.run(
        [*yaml.safe_load(entry), *given],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "GPUS": gpus,
            "ACCELERATE_MIXED_PRECISION": "bf16",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    path, *words = started.stdout.splitlines()
    assert Path(path).name == program
    if program == "accelerate":
        assert words.pop(0) == "launch"
        parsed = _validate_launch_command(launch_command_parser().parse_args(words))[0]
        found = parsed.multi_gpu, parsed.num_processes, parsed.mixed_precision
        assert found == (True, 4, "bf16")
        words = [parsed.training_script, *parsed.training_script_args]
    assert words == ["train_accelerate.py", *given]
    assert train_accelerate.parse(given).shards == "/my shards"


def is_in_the_context(path):
    """Says whether the image gets a file, by the rules of .dockerignore; the last match decides."""
    parts, taken = Path(path).parts, True
    parents = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for rule in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = rule.removeprefix("!")
        if not rule or rule.startswith("#"):
            continue
        if pattern.startswith("**/"):
            matches = pattern.removeprefix("**/") in parts
        else:
            matches = pattern == "*" or pattern in parents
        taken = rule.startswith("!") if matches else taken
    return taken


def test_the_image_gets_the_program_and_nothing_that_is_private():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    copied = {name for name in filter(None, listed) if is_in_the_context(name)}
    assert {name for name in listed if name.startswith("imagenet_rn50/")} <= copied
    needed = {"train_accelerate.py", "shard_imagenet.py", "requirements.txt"}
    assert needed | {"deploy/entrypoint.sh", "accelerate_configs/8gpu.yaml"} <= copied
    private = [".git/config", ".env", "token", "data/shards/a.tar", "runs/a/recipe.yaml"]
    private += ["imagenet_rn50/__pycache__/a.pyc", "deploy/imagenet-rn50.env", "tests/hub.py"]
    assert not [name for name in private if is_in_the_context(name)]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_the_steps_of_the_image_install_a_program_that_trains(tmp_path):
    """Its RUN and COPY lines in a folder, without a registry: only Python's version is another."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    project, installed = tmp_path / "project", tmp_path / "venv"
    for name in filter(is_in_the_context, filter(None, listed)):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, project / name)
    (install,) = (rest for name, rest in lines_of_dockerfile() if "pip install" in rest)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    script = install.replace("/opt/venv", str(installed)).replace("python ", f"{sys.executable} ")
    subprocess.run(["sh", "-ec", script], cwd=project, env=environment, check=True)

    write_shards(tmp_path / "shards", train=[30, 31, 22], validation=[6, 15])
    recipe = write_recipe(tmp_path, RECIPE)
    given = ["--recipe", recipe, "--shards", tmp_path / "shards", "--run", tmp_path / "run"]
    (_, entry) = next(line for line in lines_of_dockerfile() if line[0] == "ENTRYPOINT")
    subprocess.run(
        [*yaml.safe_load(entry), *map(str, given), "--stop-at-step", "3", "--workers", "1"],
        cwd=project,
        env=environment
        | {"PATH": f"{installed}/bin:{os.environ['PATH']}", "GPUS": "1", "ACCELERATE_USE_CPU": "1"},
        check=True,
    )
    assert read_metrics(tmp_path / "run", "checkpoint")


def test_prices_and_disks_of_the_places_are_those_of_the_table_of_estimate():
    text = (ROOT / "docs" / "where_to_run.md").read_text(encoding="utf-8").partition("\nSources")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table, compared = load_prices().instances, set()
    for place, machine, gpus, price, _, disk, *_ in rows:
        if machine not in table:
            continue
        row = table[machine]
        assert gpus.startswith(f"{row.gpus} {row.gpu}")
        expected = row.spot if "spot" in place else row.on_demand
        assert price.partition(" ")[0] == (f"{expected:.2f}" if expected else "free")
        if row.local_gb and re.search(r"\d", disk):
            assert f"{row.local_gb:,.0f} GB" in disk
        compared.add(machine)
    assert compared == {"g6.12xlarge", "l4x4", "l4x1", "a100x8", "kaggle-t4x2"}
