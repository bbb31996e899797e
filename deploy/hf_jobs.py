"""Train on Hugging Face Jobs: submit a job, and another one until the run is finished.

    hf auth login
    python -m deploy.hf_jobs --recipe rn50-16ep --shards hf://datasets/OWNER/IMAGENET \
        --bucket OWNER/BUCKET --repository GIT_ADDRESS --push-to OWNER/MODEL \
        --max-dollars 25 --dry-run

Without --dry-run it submits the job that --dry-run prints, waits, and submits the next one. A job

- mounts the data set of the shards (read-only) and a bucket, and gets the token as a secret;
- resumes the run from the bucket (`--sync`), and stops before its timeout (`--max-hours`);
- evaluates, exports and pushes once the run is finished, and copies both to the bucket.

What a later call must know is on the Hub: the jobs carry the name of the run as a label, and the
bucket has its checkpoints. So a call that was interrupted is repeated: it waits for the job that
runs. Timeouts are such that all jobs together cannot cost more than --max-dollars.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

import httpx2
import tyro
from huggingface_hub import HfApi, JobInfo, JobStage, Volume, get_token, parse_hf_uri
from huggingface_hub.errors import (
    BucketNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.runs.sync import open_remote
from imagenet_rn50.tools.estimate import Options, duration, make_estimate
from imagenet_rn50.tools.estimate_report import dollars
from imagenet_rn50.tools.plan import UNKNOWN_CONFIG, launcher_config
from imagenet_rn50.tools.prices import load_prices
from imagenet_rn50.utils.errors import InputError, exit_on_input_error, require_positive
from imagenet_rn50.utils.logging import logger

LABEL = "imagenet-rn50-run"
SHARDS, BUCKET = "/shards", "/bucket"  # where a job mounts them
WORK = "/tmp/imagenet-rn50"
POLL_SECONDS = 60.0

_ACTIVE = {JobStage.SCHEDULING, JobStage.RUNNING}


@dataclass(frozen=True)
class JobOptions:
    """Train on Hugging Face Jobs until the run is finished; then evaluate, export and push."""

    recipe: str
    """Name of a recipe."""
    shards: str
    """The data set with the shards: hf://datasets/OWNER/NAME, maybe with @REVISION and /FOLDER."""
    bucket: str
    """OWNER/NAME of the bucket that keeps the run, its report and the exported model."""
    repository: str
    """Git address of this project, which the jobs clone."""
    max_dollars: float
    """USD that all jobs of the run together may cost: nothing is submitted if the estimate is
    higher, and the timeouts never add up to more."""
    revision: str = "main"
    """Branch, tag or commit of the project."""
    run: str | None = None
    """Name of the run in the bucket; by default that of the recipe."""
    push_to: str | None = None
    """OWNER/NAME of the model repository to push to; by default the bucket alone has the model."""
    flavor: str = "l4x4"
    """Machine, of the table of `estimate --prices`: l4x1, l4x4, a100x8, ..."""
    hours: float = 6.0
    """Timeout of a job."""
    spare_minutes: float = 20.0
    """Minutes of a job that are not for training: installing, the last save and upload; after the
    last job's training, evaluating and exporting."""
    images: tuple[int, int] | None = None
    """Training and validation images, for the estimate; by default those of the recipe's source."""
    image: str = "python:3.12"
    """Docker image, with git, pip and bash."""
    namespace: str | None = None
    """User or organization that pays; by default the owner of the token."""
    dry_run: bool = False
    """Print the estimate and the command of the first job, and submit nothing."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: When one of them cannot be right.
        """
        for name in ("max_dollars", "hours", "spare_minutes"):
            require_positive(f"--{name.replace('_', '-')}", getattr(self, name))
        require_owner_and_name("--bucket", self.bucket)
        if self.push_to is not None:
            require_owner_and_name("--push-to", self.push_to)
        if self.hours <= self.spare_hours:
            raise InputError(
                f"--hours {self.hours:g} leaves no time for training",
                expected=f"more than the {self.spare_minutes:g} minutes of --spare-minutes",
            )
        self.volumes()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run or self.recipe

    @property
    def spare_hours(self) -> float:
        """Hours of a job that are not for training."""
        return self.spare_minutes / 60

    @property
    def sync(self) -> str:
        """Address of the run."""
        return f"hf://buckets/{self.bucket}/{self.name}/run"

    def volumes(self) -> list[Volume]:
        """Return what a job mounts: the shards, and the bucket.

        Raises:
            InputError: When the shards are not in a data set on the Hub.
        """
        try:
            uri = parse_hf_uri(self.shards)
            is_dataset = uri.type == "dataset"
        except ValueError:
            is_dataset = False
        if not is_dataset:
            raise InputError(
                f"--shards {self.shards} is not a data set on the Hub",
                expected="hf://datasets/OWNER/NAME, maybe with @REVISION and /FOLDER",
            )
        shards = Volume(
            type="dataset",
            source=uri.id,
            mount_path=SHARDS,
            revision=uri.revision,
            read_only=True,
            path=uri.path_in_repo or None,
        )
        return [shards, Volume(type="bucket", source=self.bucket, mount_path=BUCKET)]


def require_owner_and_name(option: str, value: str) -> None:
    """Raise an error unless a value is OWNER/NAME.

    Raises:
        InputError: When it is not.
    """
    if value.count("/") != 1 or not all(value.split("/")) or ":" in value:
        raise InputError(f"{option} {value} has another form", expected="OWNER/NAME")


@dataclass(frozen=True)
class CostPlan:
    """What the run takes, as `estimate` computes it, and how it is launched.

    Attributes:
        machine: The flavor in words.
        price: USD an hour.
        hours: Of training and its evaluations.
        num_jobs: So many jobs hold these hours.
        dollars: Of all of these jobs, with the spare time of each.
        config: Configuration file of the launcher.
        workers: Loader workers of each rank.
        basis: What is assumed of the machine's speed and price.
    """

    machine: str
    price: float
    hours: float
    num_jobs: int
    dollars: float
    config: str
    workers: int
    basis: tuple[str, str]

    def __str__(self) -> str:
        """Return the estimate as it is printed."""
        jobs = "1 job" if self.num_jobs == 1 else f"{self.num_jobs} jobs"
        speed, price = self.basis
        return (
            f"estimate: {self.hours:.1f} hours of training in {jobs} on a {self.machine}, "
            f"{dollars(self.dollars)}\n  {speed}\n  {price}"
        )


def plan_costs(options: JobOptions) -> CostPlan:
    """Estimate the run, and refuse what would cost too much.

    Raises:
        InputError: If the estimate is more than --max-dollars, or the machine does not fit.
    """
    recipe, prices = load_recipe(options.recipe), load_prices()
    chosen = Options(instance=options.flavor, images=options.images)
    estimate = make_estimate(options.recipe, recipe, prices, chosen)
    if prices.instances[options.flavor].provider != "hub":
        flavors = [name for name, row in prices.instances.items() if row.provider == "hub"]
        raise InputError(
            f"--flavor {options.flavor} is no machine of the Hub's",
            expected=f"one of {', '.join(flavors)}",
        )
    config = launcher_config(estimate)
    if config == UNKNOWN_CONFIG:
        raise InputError(
            f"accelerate_configs/ has no file for {estimate.machine} in {estimate.precision}",
            fix="choose a --flavor with 1, 4 or 8 GPUs",
        )
    hours = duration(recipe, estimate.rates).hours
    num_jobs = math.ceil(hours / (options.hours - options.spare_hours))
    price = estimate.instance.on_demand
    plan = CostPlan(
        machine=estimate.machine,
        price=price,
        hours=hours,
        num_jobs=num_jobs,
        dollars=price * (hours + num_jobs * options.spare_hours),
        config=config,
        workers=max(1, estimate.instance.vcpus // estimate.instance.gpus - 1),
        basis=(estimate.speed_source, estimate.price_source),
    )
    if plan.dollars > options.max_dollars:
        raise InputError(
            f"the run would cost more than --max-dollars {options.max_dollars:g}",
            found=str(plan).removeprefix("estimate: "),
            fix="allow more, or choose a shorter recipe or another --flavor: "
            "`estimate --recipes --instance FLAVOR` compares them",
        )
    return plan


def time_limit(hours: float) -> list[str]:
    """Return the options by which training stops and saves by itself after so many hours."""
    return ["--max-hours", f"{hours:.2f}"]


def script(options: JobOptions, plan: CostPlan, hours: float) -> str:
    """Return what a job runs, with `bash -ec`.

    Until the run is finished, the launcher fails, and with it the job.

    Args:
        options: What was asked for.
        plan: How the run is launched.
        hours: Timeout of the job.
    """
    run, model, report = (f"{WORK}/{name}" for name in ("run", "model", "evaluation"))
    kept = f"{BUCKET}/{options.name}"
    train = [
        *("accelerate", "launch", "--quiet", "--config_file", plan.config, "train_accelerate.py"),
        *("--recipe", options.recipe, "--shards", SHARDS, "--run", run, "--sync", options.sync),
        *("--workers", f"{plan.workers}", "--price-per-hour", f"{plan.price:g}"),
        *time_limit(hours - options.spare_hours),
    ]
    tool = ("python", "-m", "imagenet_rn50")
    export = [*tool, "export", "--run", run, "--out", model]
    metrics = f"{report}/metrics.json"
    commands = [
        ["git", "clone", "--quiet", options.repository, f"{WORK}/project"],
        ["cd", f"{WORK}/project"],
        ["git", "checkout", "--quiet", options.revision],
        ["pip", "install", "--quiet", "--requirement", "requirements.txt"],
        train,
        export,
        [*tool, "evaluate", "--model", model, "--shards", SHARDS, "--out", report],
        [*export, "--metrics", metrics],
        ["mkdir", "-p", kept],
        ["cp", "-r", model, report, kept],
    ]
    if options.push_to is not None:
        commands.append([*tool, "push", "--model", model, "--to", options.push_to])
    return "\n".join(shlex.join(words) for words in commands)


def job_request(options: JobOptions, plan: CostPlan, hours: float) -> dict[str, Any]:
    """Return the arguments of `HfApi.run_job`, except for the secrets."""
    return {
        "image": options.image,
        "command": ["bash", "-ec", script(options, plan, hours)],
        "flavor": options.flavor,
        "timeout": f"{math.floor(hours * 3600)}s",
        "labels": {LABEL: options.name},
        "volumes": options.volumes(),
        "namespace": options.namespace,
    }


def shown_command(request: dict[str, Any]) -> str:
    """Return the `hf jobs run` command of a request. The token is a name in it, never a value."""
    words = ["hf", "jobs", "run", "--detach", "--flavor", request["flavor"]]
    words += ["--timeout", request["timeout"], "--secrets", "HF_TOKEN"]
    for key, value in request["labels"].items():
        words += ["--label", f"{key}={value}"]
    for volume in request["volumes"]:
        words += ["--volume", volume.to_uri()]
    if request["namespace"] is not None:
        words += ["--namespace", request["namespace"]]
    return shlex.join([*words, "--", request["image"], *request["command"]])


class JobRunner:
    """Submit jobs until the run is finished.

    Args:
        options: What was asked for.
        plan: What it takes.
        api: The client.
        token: What the jobs read and write the Hub with.
    """

    def __init__(self, options: JobOptions, plan: CostPlan, api: HfApi, token: str) -> None:
        self._options, self._plan, self._api, self._token = options, plan, api, token
        self._namespace = options.namespace

    def run(self) -> None:
        """Wait for the job that runs, or submit one, until one of them has done everything.

        Raises:
            InputError: If a job saved nothing new or was cancelled, the ceiling is reached, data
                set or bucket do not exist, or the Hub does not answer.
        """
        try:
            self._namespace = self._namespace or self._api.whoami(token=self._token)["name"]
            self._require_volumes()
            self._run()
        except (HfHubHTTPError, httpx2.HTTPError) as error:
            # Its text may hold the request, but not the token, which is in a header.
            raise InputError(
                f"the Hub answered with an error: {str(error).partition(chr(10))[0]}",
                fix="call again later; a job that runs is not disturbed, and is waited for",
            ) from None

    def _require_volumes(self) -> None:
        """Look up what the jobs mount.

        Raises:
            InputError: If data set or bucket do not exist, or the token may not read them.
        """
        shards, bucket = self._options.volumes()
        try:
            self._api.dataset_info(shards.source, revision=shards.revision, token=self._token)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise InputError(
                f"there is no {self._options.shards}, or the token may not read it"
            ) from None
        try:
            self._api.bucket_info(bucket.source, token=self._token)
        except BucketNotFoundError:
            raise InputError(
                f"there is no bucket {bucket.source}, or the token may not read it",
                fix=f"create it: hf buckets create {bucket.source} --private",
            ) from None

    def _run(self) -> None:
        while True:
            jobs = self._jobs()
            active = next((job for job in jobs if job.status.stage in _ACTIVE), None)
            if active is None and any(job.status.stage == JobStage.COMPLETED for job in jobs):
                logger.info(
                    f"{self._options.name} is finished: hf://buckets/{self._options.bucket}"
                )
                return
            before = self._checkpoints()
            job = active or self._submit(self._spent(jobs))
            logger.info(f"waiting for {job.url}")
            job = self._api.wait_for_job(
                job.id, poll_interval=POLL_SECONDS, namespace=self._namespace, token=self._token
            )
            self._require_progress(job, before)

    def _jobs(self) -> list[JobInfo]:
        labels = {LABEL: self._options.name}
        return list(
            self._api.list_jobs(labels=labels, namespace=self._namespace, token=self._token)
        )

    def _checkpoints(self) -> set[str]:
        """Return the names of the checkpoints in the bucket."""
        files = open_remote(self._options.sync).latest() or []
        return {file.checkpoint for file in files if file.checkpoint is not None}

    def _spent(self, jobs: list[JobInfo]) -> float:
        """Return the USD that jobs have cost so far."""
        table = load_prices().instances
        spent = 0.0
        for job in jobs:
            flavor = job.flavor and table.get(str(job.flavor))
            price = flavor.on_demand if flavor else self._plan.price
            seconds = job.durations.running_secs if job.durations else None
            spent += price * (seconds or 0) / 3600
        return spent

    def _submit(self, spent: float) -> JobInfo:
        """Submit a job whose timeout keeps the run below the ceiling.

        Raises:
            InputError: If what is left is not worth a job.
        """
        left = self._options.max_dollars - spent
        hours = min(self._options.hours, left / self._plan.price)
        if hours <= self._options.spare_hours:
            raise InputError(
                f"the jobs of {self._options.name} have cost {dollars(spent)} of --max-dollars "
                f"{self._options.max_dollars:g}: no job fits into the rest",
                fix="allow more; the run resumes from the bucket",
            )
        request = job_request(self._options, self._plan, hours)
        request["namespace"] = self._namespace
        return self._api.run_job(**request, secrets={"HF_TOKEN": self._token}, token=self._token)

    def _require_progress(self, job: JobInfo, before: set[str]) -> None:
        """Refuse to go on after a job that another one would only repeat.

        Raises:
            InputError: If it was cancelled, or failed without a new checkpoint.
        """
        stage = job.status.stage
        if stage == JobStage.COMPLETED:
            return
        if stage != JobStage.ERROR:
            raise InputError(f"{job.url} was ended: {stage}", fix="call again to resume the run")
        if self._checkpoints() <= before:
            raise InputError(
                f"{job.url} failed, and saved no new checkpoint",
                found=job.status.message,
                fix=f"read its log: hf jobs logs {self._namespace}/{job.id}",
            )
        logger.info(f"{job.url} stopped; the run resumes from its newest checkpoint")


def main() -> None:
    """Parse the command line, and submit or print."""
    with exit_on_input_error():
        options = tyro.cli(JobOptions)
        plan = plan_costs(options)
        print(plan)
        if options.dry_run:
            print(shown_command(job_request(options, plan, options.hours)))
            return
        token = get_token()
        if token is None:
            raise InputError("no token for the Hub", fix="log in: hf auth login; or set HF_TOKEN")
        JobRunner(options, plan, HfApi(), token).run()


if __name__ == "__main__":
    main()
