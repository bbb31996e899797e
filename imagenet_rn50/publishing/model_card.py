"""Write the model card (README.md) of an export from its source files (contract 8).

`model_card` fills card.md, with `metadata` for the Hub and `reproduction`, the commands for data,
training, evaluation and export. `provenance` cites and checks each number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from imagenet_rn50.evaluation.metrics import TOP_K
from imagenet_rn50.publishing.layout import (
    ASSUMED_ARCHITECTURE,
    CLASSES,
    CONFIG,
    EVALUATION,
    METRICS,
    ORIGIN,
    RECIPE,
    SHARDS,
)
from imagenet_rn50.publishing.provenance import (
    EVALUATED_ON,
    PUBLISHED,
    REAL,
    REAL_SUFFIX,
    TRAINED_ON,
    UNVERIFIED_PREFIX,
    FieldRef,
    SourceFiles,
    as_option,
)
from imagenet_rn50.publishing.snippets import IMAGENET_LIMITS, LIMITS, LOADING, SNIPPETS, Format
from imagenet_rn50.runs.checkpoint import SelectedWeights
from imagenet_rn50.runs.metrics import START
from imagenet_rn50.shards.imagenet1k import HUB_NAME, is_name
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.subset import LIST_NAMES
from imagenet_rn50.utils.files import read_yaml
from imagenet_rn50.utils.formatting import percent_spec

_NEXT = " \\\n    "  # continues a command on the next line
_HOLDOUT = FieldRef(SHARDS, "options.holdout")
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


_LICENSE = "apache-2.0"
_METRICS = (("top-1", "top1"), ("top-5", "top5"))
_EVALUATED_SPLIT = FieldRef(EVALUATION, "dataset.split")
_LIBRARIES: dict[Format, str] = {
    "transformers": "transformers",
    "torchvision": "torchvision",
    "onnx": "onnx",
}


@dataclass(frozen=True)
class CardInfo:
    """Facts of an export that its source files do not hold.

    Attributes:
        name: The model's name.
        form: Format of the weights.
        dtype: Data type of the weights.
        choice: The selected weights of a run; None for pretrained weights, which have an
            origin.json.
    """

    name: str
    form: Format
    dtype: str
    choice: SelectedWeights | None


def metadata(files: SourceFiles, info: CardInfo) -> ModelCardData:
    """Return the metadata of the card, which the Hub reads.

    Args:
        files: The source files.
        info: Other facts of the export.
    """
    is_own = info.choice is not None and files.init_from() is None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data if hub_name is None else hub_name,
            dataset_name=data,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=files.value(ref),
            metric_args=ref.as_arguments(),
        )
        for data, hub_name, split, name, ref in _scores(files, info)
    ]
    is_imagenet1k = info.choice is not None and files.trained_on_imagenet1k()
    return ModelCardData(
        license=_LICENSE if is_own else None,  # weights trained from others keep their license
        library_name=_LIBRARIES[info.form],
        pipeline_tag="image-classification",
        tags=["image-classification", "resnet", "vision"],
        datasets=[HUB_NAME] if is_imagenet1k else None,
        metrics=["accuracy"],
        model_name=info.name,
        eval_results=results or None,
    )


def has_top5(files: SourceFiles, file: str) -> bool:
    """Return whether top-5 is meaningful: not if there are at most five classes."""
    num_classes = len(files.value(FieldRef(CONFIG, "id2label")))
    if file == EVALUATION:  # a test set may have a subset of the classes
        num_classes = files.get(FieldRef(EVALUATION, "num_classes_counted"), num_classes)
    return num_classes > TOP_K


def _metrics(files: SourceFiles, file: str) -> tuple[tuple[str, str], ...]:
    """Return names and keys of the meaningful accuracies in a file."""
    return _METRICS if has_top5(files, file) else _METRICS[:1]


def _scores(
    files: SourceFiles, info: CardInfo
) -> Iterator[tuple[str, str | None, str, str, FieldRef]]:
    """Yield data, its name on the Hub if any, split, metric and FieldRef of each result.

    The Hub takes one result per data set: the one that users get, with the published processor and
    without flip averaging. Without an evaluation, the validation during training is used.
    """
    best: dict[str, tuple[tuple[bool, bool], int]] = {}
    for number, result in enumerate(evaluations(files)):
        rank = (not result["flip"], result["transform"] == "processor")
        if result["name"] not in best or rank > best[result["name"]][0]:
            best[result["name"]] = (rank, number)
    choice = info.choice
    for name, (_, number) in best.items():
        data, split = str(files.value(EVALUATED_ON)), files.value(_EVALUATED_SPLIT)
        is_imagenet1k = files.evaluated_on_imagenet1k()
        data = _without_claim(data, is_imagenet1k) + (REAL_SUFFIX if name == REAL else "")
        hub_name = HUB_NAME if is_imagenet1k and name != REAL else None
        for metric, key in _metrics(files, EVALUATION):
            yield data, hub_name, split, metric, FieldRef(EVALUATION, f"results.{number}.{key}")
    if not best and choice and choice.line is not None:
        is_imagenet1k = files.trained_on_imagenet1k("validation")
        data = _without_claim(str(files.value(TRAINED_ON)), is_imagenet1k)
        for metric, key in _metrics(files, METRICS):
            ref = FieldRef(METRICS, choice.prefix + key, choice.line)
            yield data, HUB_NAME if is_imagenet1k else None, "validation", metric, ref


def _without_claim(data: str, is_imagenet1k: bool) -> str:
    """Return a data set's name, prefixed if it is an unverified claim to be ImageNet-1k."""
    return f"{UNVERIFIED_PREFIX}{data}" if is_name(data) and not is_imagenet1k else data


def evaluations(files: SourceFiles) -> list[dict[str, Any]]:
    """Return the results of metrics.json, if there is one."""
    if not files.has(EVALUATION):
        return []
    results: list[dict[str, Any]] = files.value(FieldRef(EVALUATION, "results"))
    return results


_TEMPLATE = Path(__file__).with_name("card.md")
_RESNET50 = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
_MACHINE = {"device": "device", "world_size": "ranks", "mixed_precision": "mixed precision"}
_CURVES = ("accuracy", "loss", "learning_rate")


def model_card(folder: Path, info: CardInfo) -> str:
    """Return the README.md of an exported model.

    Args:
        folder: The export, with weights, configuration and source files.
        info: Other facts of the export.
    """
    files = SourceFiles(folder)
    body = _TEMPLATE.read_text(encoding="utf-8").format(
        name=info.name,
        what=_what(files, info),
        results=_results(files, info),
        published=_published(files),
        loading=LOADING[info.form],
        snippet=SNIPPETS[info.form],
        training=_training(files, info),
        curves=_curves(folder),
        limits=LIMITS + (IMAGENET_LIMITS if files.is_imagenet1k() else ""),
        reproduce=reproduction(files, info),
    )
    return f"---\n{metadata(files, info).to_yaml()}\n---\n\n{body}"


def _what(files: SourceFiles, info: CardInfo) -> str:
    """Return a short description of the model."""
    is_resnet50 = all(files.value(FieldRef(CONFIG, key)) == v for key, v in _RESNET50.items())
    kind = "ResNet-50 (v1.5: stride in the middle convolution)" if is_resnet50 else "ResNet"
    count = files.cite(FieldRef(CONFIG, "id2label"), ",")
    is_one = len(files.value(FieldRef(CONFIG, "id2label"))) == 1
    classes = "class" if is_one else "classes"
    text = f"A {kind} that classifies images into {count} {classes} (`{CONFIG}`)."
    if info.choice is None:
        name = files.cite(FieldRef(ORIGIN, "name"))
        is_assumed = files.value(FieldRef(ORIGIN, "architecture")) == ASSUMED_ARCHITECTURE
        text += (
            f"\nIts weights were not trained here but converted, tensor by tensor, from {name} "
            f"(`{ORIGIN}`)."
        )
        if is_assumed:
            text += "\nThe file does not declare its architecture, so it was assumed."
        return f"{text}\nThe license of the original applies."
    averaged = ", averaged over training," if info.choice.kind == "ema" else ""
    trained_on = files.cite_data(TRAINED_ON, files.trained_on_imagenet1k())
    data = f"{trained_on} (`{SHARDS}`)"
    text += f"\nIts weights{averaged} were trained on {data} with imagenet_rn50."
    text += _selected(files)
    if (line := files.init_from()) is None:
        return text
    origin = FieldRef(METRICS, "init_from.name", line)
    return (
        f"{text}\nTraining began with the weights of {files.cite(origin)} "
        f"({origin.describe()}).\nTheir license applies, so none is given here."
    )


def _selected(files: SourceFiles) -> str:
    """Return which shards the data was selected or packed from, and where a hold-out was."""
    text, at, this = "", "options", "This data"
    while "parent" in files.get(FieldRef(SHARDS, at), {}):
        relation = (
            "is a subset of" if "subset" in files.value(FieldRef(SHARDS, at)) else "was packed from"
        )
        at += ".parent"
        name, fingerprint = (FieldRef(SHARDS, f"{at}.{key}") for key in ("dataset", "fingerprint"))
        text += (
            f"\n{this} {relation} {files.cite(name)} (`{SHARDS}`), whose manifest has the "
            f"fingerprint\n{files.cite(fingerprint)} (`{SHARDS}`)."
        )
        at, this = f"{at}.options", "That data"
    if files.get(_HOLDOUT):
        text += (
            "\nIts validation split was held out of the training images: "
            f"{files.cite(_HOLDOUT)} of each class (`{SHARDS}`)."
        )
    return text


def _results(files: SourceFiles, info: CardInfo) -> str:
    """Return the table of results."""
    rows = [
        "| data | top-1 (95% interval) | top-5 (95% interval) | images | source |\n"
        "|---|---:|---:|---:|---|\n"
    ]
    for number, result in enumerate(evaluations(files)):
        at = f"results.{number}."
        scores = [_with_interval(files, at + "top1")]
        scores += [_with_interval(files, at + "top5") if has_top5(files, EVALUATION) else "-"]
        images = files.cite(FieldRef(EVALUATION, f"{at}num_images"), ",")
        flip = ", averaged with its mirror image" if result["flip"] else ""
        cells = [
            f"{_data(files, result)}, as published, {result['transform']} transform{flip}",
            *scores,
            images,
        ]
        rows.append(_row([*cells, FieldRef(EVALUATION, f"{at}top1").describe()]))
    choice = info.choice
    if choice and choice.line is not None:
        line, prefix = choice.line, choice.prefix
        refs = [FieldRef(METRICS, prefix + key, line) for key in ("top1", "top5")]
        data = files.cite_data(TRAINED_ON, files.trained_on_imagenet1k("validation"))
        held_out = ", held out of the training images" if files.get(_HOLDOUT) else ""
        cells = [f"{data}, validation during training{held_out}"]
        shown = [_percent(files, ref) for ref in refs]
        cells += shown if has_top5(files, METRICS) else [shown[0], "-"]
        cells.append(files.cite(FieldRef(METRICS, f"{prefix}num_images", line), ","))
        rows.append(_row([*cells, f"{refs[0].describe()}, {SHARDS}"]))
    return "".join(rows).rstrip() if len(rows) > 1 else "These weights were not evaluated."


def _data(files: SourceFiles, result: dict[str, Any]) -> str:
    """Return the description of the data of a row of metrics.json."""
    data = files.value(FieldRef(EVALUATION, "dataset"))
    text = files.cite_data(EVALUATED_ON, files.evaluated_on_imagenet1k())
    if result["name"] == data["name"]:
        return text  # a test set of files
    text += f", {data['split']}" + (", labels of ReaL" if result["name"] == REAL else "")
    trained_on = files.value(FieldRef(SHARDS, "fingerprint")) if files.has(SHARDS) else None
    is_other = trained_on is not None and trained_on != data.get("fingerprint")
    return text + (" (not the shards of the training)" if is_other else "")


def _published(files: SourceFiles) -> str:
    """Return the table of published ResNet-50s, for a model of ImageNet-1k."""
    if not files.is_imagenet1k():
        return ""
    head = "| published ResNet-50s on ImageNet-1k's validation set | top-1 | top-5 | source |\n"
    head += "|---|---:|---:|---|\n"
    path = Path(__file__).with_name(PUBLISHED)
    rows = []
    for key, entry in read_yaml(path).items():
        scores = [
            files.cite(FieldRef(PUBLISHED, f"{key}.{name}"), ".2%") if name in entry else "-"
            for name in ("top1", "top5")
        ]
        where = f"[its authors]({entry['url']}), {FieldRef(PUBLISHED, key).describe()}"
        rows.append(_row([files.cite(FieldRef(PUBLISHED, f"{key}.name")), *scores, where]))
    return f"\n{head}{''.join(rows)}"


def _training(files: SourceFiles, info: CardInfo) -> str:
    """Return the resolved recipe, with hardware, software, time and cost of the run."""
    if info.choice is None:
        return "See the original."
    recipe = (files.folder / RECIPE).read_text(encoding="utf-8")
    table = "".join(_row(cells) for cells in _run_facts(files, info.choice))
    return (
        f"| | | source |\n|---|---:|---|\n{table}\nThe recipe as resolved, `{RECIPE}`:\n\n"
        f"```yaml\n{recipe}```"
    )


def _run_facts(files: SourceFiles, choice: SelectedWeights) -> Iterator[list[str]]:
    """Yield rows with hardware, software, time and cost, as far as metrics.jsonl has them."""
    starts = files.lines(START)
    machines: dict[tuple[Any, ...], int] = {}
    for number, record in starts:
        machine = tuple(record.get(name) for name in _MACHINE)
        machines.setdefault(machine, number)
    for number in machines.values():
        yield from _cited(files, number, _MACHINE)
    if starts:
        number, first = starts[0]
        versions = {f"versions.{name}": name for name in first.get("versions", {})}
        yield from _cited(files, number, {"python": "Python"} | versions)
        if (line := files.init_from()) is not None:
            origin = {"name": "initial weights", "sha256": "their sha256"}
            fields = {f"init_from.{key}": label for key, label in origin.items()}
            yield from _cited(files, line, fields)
        everything = FieldRef(METRICS, "starts")
        yield ["processes started", files.cite(everything), everything.describe()]
    unit = "hours" if files.value(FieldRef(METRICS, "hours")) >= 1 else "minutes"
    for name, key, least, spec in (
        (f"{unit} of training and validation", unit, 0.05, ".1f"),
        ("images/s", "images_per_second", 5, ",.0f"),
    ):
        ref = FieldRef(METRICS, key)
        if (value := files.get(ref)) is not None:
            is_small = value < least
            yield [name, files.cite(ref, ".3f" if is_small else spec), ref.describe()]
    if choice.line is not None:
        yield from _cited(files, choice.line, {"epoch": "epochs", "samples_seen": "images seen"})
    cost = FieldRef(METRICS, "cost_usd")
    is_known = files.get(cost) is not None
    yield [
        "cost, USD",
        *((files.cite(cost, ".2f"), cost.describe()) if is_known else ("not recorded", "")),
    ]


def _cited(files: SourceFiles, line: int, fields: dict[str, str]) -> Iterator[list[str]]:
    """Yield a row for each field of a line of metrics.jsonl."""
    for field, name in fields.items():
        ref = FieldRef(METRICS, field, line)
        spec = ".2f" if isinstance(files.value(ref), float) else ""
        yield [name, files.cite(ref, spec), ref.describe()]


def _curves(folder: Path) -> str:
    """Return the images of the plots that were copied."""
    names = [name for name in _CURVES if (folder / "plots" / f"{name}.png").is_file()]
    lines = [f"![{name.replace('_', ' ')} over epochs](plots/{name}.png)\n" for name in names]
    return "\n" + "".join(lines) if lines else ""


def _with_interval(files: SourceFiles, field: str) -> str:
    """Return a fraction and its interval as percent."""
    value, low, high = (
        _percent(files, FieldRef(EVALUATION, name))
        for name in (field, f"{field}_low", f"{field}_high")
    )
    return f"{value} ({low} to {high})"


def _percent(files: SourceFiles, ref: FieldRef) -> str:
    """Cite a fraction as percent; only 0 and 1 are rounded to 0% and 100%."""
    return files.cite(ref, percent_spec(files.value(ref)))


def _row(cells: list[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |\n"
