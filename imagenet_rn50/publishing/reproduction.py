"""The commands in a card that lead to it: data, training, evaluation, and the export of both."""

from __future__ import annotations

from imagenet_rn50.publishing.evidence import REAL, Evidence, Place
from imagenet_rn50.publishing.layout import CLASSES, EVALUATION, METRICS, ORIGIN, RECIPE, SHARDS
from imagenet_rn50.publishing.metadata import Facts
from imagenet_rn50.publishing.packed import packing_command, packing_remark

_NEXT = " \\\n    "  # a command goes on in the next line


def reproduction(evidence: Evidence, facts: Facts) -> str:
    """Returns what is needed, and the commands that lead here.

    Args:
        evidence: What stands beside the card.
        facts: What else is known.
    """
    if facts.choice is None:
        needed, commands = _weights_of_others(evidence), []
        source = "--from WEIGHTS"
        source += f" --classes {CLASSES}" if evidence.has(CLASSES) else ""
    else:
        needed, commands = _needed(evidence), _training(evidence)
        source = f"--run RUN --checkpoint {facts.choice.which} --weights {facts.choice.kind}"
    export = f"python -m imagenet_rn50 export --out MODEL{_NEXT}{source}"
    export += f" --dtype {facts.dtype}" if facts.dtype != "float32" else ""
    form = f" --format {facts.form}" if facts.form != "transformers" else ""
    if evidence.has(EVALUATION):  # evaluate takes transformers' format, in which all begin
        commands += [export, _evaluation(evidence)]
        form += f"{_NEXT}--metrics EVALUATION/{EVALUATION}"
    return "\n".join([needed, "", "```bash", *commands, export + form, "```"])


def _needed(evidence: Evidence) -> str:
    """Says what the training began with."""
    digest = evidence.cite(Place(SHARDS, "digest"))
    text = f"With `{RECIPE}` from this folder, and shards whose manifest has the digest\n"
    text += f"{digest} (`{SHARDS}`){packing_remark(evidence)}"
    if (line := evidence.init_from()) is None:
        return f"{text}:"
    name, sha256 = (Place(METRICS, f"init_from.{key}", line) for key in ("name", "sha256"))
    where = name.in_words()
    return (
        f"{text}.\nWEIGHTS are {evidence.cite(name)} ({where}), whose sha256 is\n"
        f"{evidence.cite(sha256)} ({where}):"
    )


def _weights_of_others(evidence: Evidence) -> str:
    """Says which file was converted, and what it was evaluated on."""
    sha256 = evidence.cite(Place(ORIGIN, "sha256"))
    text = f"WEIGHTS is a file with the sha256 {sha256} (`{ORIGIN}`)"
    if evidence.has(EVALUATION) and "digest" in evidence.value(Place(EVALUATION, "dataset")):
        digest = evidence.cite(Place(EVALUATION, "dataset.digest"))
        text += f",\nSHARDS have a manifest with the digest {digest} (`{EVALUATION}`)"
    return f"{text}:"


def _training(evidence: Evidence) -> list[str]:
    """Returns the commands that pack and train."""
    began = " --init-from WEIGHTS" if evidence.init_from() is not None else ""
    return [
        packing_command(evidence),
        f"accelerate launch --config_file CONFIG train_accelerate.py{_NEXT}"
        f"--recipe {RECIPE} --shards SHARDS --run RUN{began}",
    ]


def _evaluation(evidence: Evidence) -> str:
    """Returns the command that made metrics.json."""
    data = evidence.value(Place(EVALUATION, "dataset"))
    rows = evidence.value(Place(EVALUATION, "results"))
    command = "python -m imagenet_rn50 evaluate --model MODEL --out EVALUATION"
    if "digest" not in data:
        command += f"{_NEXT}--images IMAGES"
    else:
        split = f" --split {data['split']}" if data["split"] != "validation" else ""
        command += f"{_NEXT}--shards SHARDS{split}"
    command += " --real real.json" if any(row["name"] == REAL for row in rows) else ""
    command += " --flip" if any(row["flip"] for row in rows) else ""
    transforms = {row["transform"] for row in rows}
    return command + (f" --transform {transforms.pop()}" if len(transforms) == 1 else "")
