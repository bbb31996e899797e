"""The commands of a card that reproduce the export: data, training, evaluation and export."""

from __future__ import annotations

from typing import Any

from imagenet_rn50.publishing.layout import (
    CALIBRATION,
    CLASSES,
    EVALUATION,
    EXAMPLES_SOURCE,
    METRICS,
    ORIGIN,
    RECIPE,
    SHARDS,
)
from imagenet_rn50.publishing.source_files import REAL, CardInfo, FieldRef, SourceFiles, as_option
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.subset import LIST_NAMES

_NEXT = " \\\n    "  # continues a command on the next line
# "auto": if jpegtran is installed
_PACK_DEFAULTS = {
    **PackOptions(restart_blocks="auto").as_dict(),
    **dict.fromkeys(("holdout", "image_column", "label_column")),
}


def reproduction(files: SourceFiles, info: CardInfo) -> str:
    """Return the inputs and the commands that reproduce the export.

    Args:
        files: The source files.
        info: Other facts of the export.
    """
    if info.choice is None:
        inputs, commands = _pretrained_inputs(files), []
        source = "--from WEIGHTS"
        source += f" --classes {CLASSES}" if files.has(CLASSES) else ""
    else:
        inputs, commands = _inputs(files), _training_commands(files)
        source = f"--run RUN --checkpoint {info.choice.which} --weights {info.choice.kind}"
    export = f"python -m imagenet_rn50 export --out MODEL{_NEXT}{source}"
    export += f" --dtype {info.dtype}" if info.dtype != "float32" else ""
    form = f" --format {info.form}" if info.form != "transformers" else ""
    if files.has(EVALUATION):  # evaluate needs transformers' format
        commands += [export, _evaluation(files)]
        form += f"{_NEXT}--metrics EVALUATION/{EVALUATION}"
    if files.has(CALIBRATION) or files.has(EXAMPLES_SOURCE):
        form += " --shards SHARDS"
    return "\n".join([inputs, "", "```bash", *commands, export + form, "```"])


def _inputs(files: SourceFiles) -> str:
    """Return the inputs of the training: recipe, shards and initial weights."""
    fingerprint = files.cite(FieldRef(SHARDS, "fingerprint"))
    text = f"With `{RECIPE}` from this folder, and shards whose manifest has the fingerprint\n"
    text += f"{fingerprint} (`{SHARDS}`){_pack_note(files)}"
    if (line := files.init_from()) is None:
        return f"{text}:"
    name, sha256 = (FieldRef(METRICS, f"init_from.{key}", line) for key in ("name", "sha256"))
    where = name.describe()
    return (
        f"{text}.\nWEIGHTS are {files.cite(name)} ({where}), whose sha256 is\n"
        f"{files.cite(sha256)} ({where}):"
    )


def _pretrained_inputs(files: SourceFiles) -> str:
    """Return the inputs of a conversion: weights, and shards of the evaluation."""
    sha256 = files.cite(FieldRef(ORIGIN, "sha256"))
    text = f"WEIGHTS is a file with the sha256 {sha256} (`{ORIGIN}`)"
    if files.has(EVALUATION) and "fingerprint" in files.value(FieldRef(EVALUATION, "dataset")):
        fingerprint = files.cite(FieldRef(EVALUATION, "dataset.fingerprint"))
        text += f",\nSHARDS have a manifest with the fingerprint {fingerprint} (`{EVALUATION}`)"
    return f"{text}:"


_INDEX_OPTIONS = ("train", "validation", "label_key")


def _training_commands(files: SourceFiles) -> list[str]:
    """Return the commands that pack, select a subset and train."""
    began = " --init-from WEIGHTS" if files.init_from() is not None else ""
    packed, *subsets = files.lineage()
    outs = ["SHARDS", *(f"{'PARENT_OF_' * number}PARENT" for number in range(len(subsets)))][::-1]
    return [
        _pack_command(packed, outs[0]),
        *map(_subset_command, subsets, outs, outs[1:]),
        f"accelerate launch --quiet --config_file CONFIG train_accelerate.py{_NEXT}"
        f"--recipe {RECIPE} --shards SHARDS --run RUN{began}",
    ]


def _pack_command(options: dict[str, Any], out: str) -> str:
    """Return the command that packs shards, or that indexes shards packed elsewhere."""
    dataset = as_option("dataset", options["dataset"])
    if _is_inherited_holdout(options):
        options = {**options, "holdout": None}
    if "indexed" in options:
        given = [as_option(name, options[name]) for name in _INDEX_OPTIONS if name in options]
        given += ["--on-corrupt skip"] if options.get("num_skipped") else []
        return " ".join([f"python shard_imagenet.py index --shards {out} {dataset}", *given])
    source = as_option("source", options.get("source", "SOURCE"))
    command = f"python shard_imagenet.py pack {source} --out {out} {dataset}"
    changed = [
        as_option(name, options[name])
        for name, default in _PACK_DEFAULTS.items()
        if name != "dataset" and name in options and options[name] != default
    ]
    return command + (_NEXT + " ".join(changed) if changed else "")


def _is_inherited_holdout(options: dict[str, Any]) -> bool:
    """Return whether shards were packed from shards that had the hold-out already."""
    parent = options.get("parent", {}).get("options", {})
    return bool(parent.get("holdout")) and not options.get("train_only")


def _subset_command(options: dict[str, Any], parent: str, out: str) -> str:
    """Return the command that selects a subset."""
    dataset = as_option("dataset", options["dataset"])
    command = f"python shard_imagenet.py subset --shards {parent} --out {out} {dataset}"
    # The user's own list of classes may be anywhere; what it selected is in the export.
    selected = [
        as_option(name, CLASSES if name == "classes" and value not in LIST_NAMES else value)
        for name, value in options["subset"].items()
    ]
    return command + (_NEXT + " ".join(selected) if selected else "")


def _pack_note(files: SourceFiles) -> str:
    """Return what packing needs besides its command, as the end of a sentence."""
    options = files.lineage()[0]
    if options.keys() == {"dataset"}:
        return ".\nTheir packing options were not recorded"
    if options.get("indexed"):
        return ".\nThey were packed elsewhere, and SHARDS holds their files"
    note = f".\nThe layout of SOURCE is `{options['layout']}`" if "layout" in options else ""
    return note + (", and packing needs `jpegtran`" if options.get("restart_blocks") else "")


def _evaluation(files: SourceFiles) -> str:
    """Return the command that made metrics.json."""
    data = files.value(FieldRef(EVALUATION, "dataset"))
    rows = files.value(FieldRef(EVALUATION, "results"))
    command = "python -m imagenet_rn50 evaluate --model MODEL --out EVALUATION"
    if "fingerprint" not in data:
        command += f"{_NEXT}--images IMAGES"
    else:
        split = f" --split {data['split']}" if data["split"] != "validation" else ""
        command += f"{_NEXT}--shards SHARDS{split}"
    command += " --real real.json" if any(row["name"] == REAL for row in rows) else ""
    command += " --flip" if any(row["flip"] for row in rows) else ""
    transforms = {row["transform"] for row in rows}
    return command + (f" --transform {transforms.pop()}" if len(transforms) == 1 else "")
