"""Write the model card (README.md) of an export from its source files (contract 8).

`model_card` fills card.md. `card_metadata` has its metadata for the Hub, `reproduction` the
commands for data, training, evaluation and export; `provenance` checks each number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_rn50.publishing.card_metadata import (
    leaderboard_refs,
    license_of,
    metadata,
    scores,
)
from imagenet_rn50.publishing.layout import (
    ASSUMED_ARCHITECTURE,
    CONFIG,
    EVALUATION,
    METRICS,
    ONNX_FOLDER,
    ORIGIN,
    PLOTS,
    PROCESSOR,
    RECIPE,
    SHARDS,
    STATS,
    WEB_METRICS,
)
from imagenet_rn50.publishing.reproduction import reproduction
from imagenet_rn50.publishing.snippets import IMAGENET_LIMITS, LIMITS, citation, usage
from imagenet_rn50.publishing.source_files import (
    EVALUATED_ON,
    PUBLISHED,
    REAL,
    TRAINED_ON,
    CardInfo,
    FieldRef,
    SourceFiles,
)
from imagenet_rn50.publishing.validation_images import validation_images_note
from imagenet_rn50.runs.checkpoint import SelectedWeights
from imagenet_rn50.runs.metrics import START
from imagenet_rn50.shards.manifest import VALIDATION
from imagenet_rn50.utils.files import read_yaml
from imagenet_rn50.utils.formatting import first_name

_TEMPLATE = Path(__file__).with_name("card.md")
_HOLDOUT = FieldRef(SHARDS, "options.holdout")
_RESNET50 = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
_MAX_NAMED = 20  # classes that the card names
_MACHINE = {"device": "device", "world_size": "ranks", "mixed_precision": "mixed precision"}
_CURVES = ("accuracy", "loss", "learning_rate", "speed")


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
        headline=_headline(files, info),
        model=_model(files, info),
        usage=usage(info.form),
        results=_results(files, info) + _web_models(files),
        published=_published(files, info),
        training=_training(files, info),
        limits=LIMITS
        + (IMAGENET_LIMITS if files.is_imagenet1k() else "")
        + validation_images_note(files),
        reproduce=reproduction(files, info),
        citation=citation(info.name, is_imagenet1k=files.is_imagenet1k()),
    )
    return f"---\n{metadata(files, info).to_yaml()}\n---\n\n{body}"


def _what(files: SourceFiles, info: CardInfo) -> str:
    """Return a short description of the model: what it is, and what it was trained on."""
    is_resnet50 = all(files.value(FieldRef(CONFIG, key)) == v for key, v in _RESNET50.items())
    kind = "ResNet-50 (v1.5: stride in the middle convolution)" if is_resnet50 else "ResNet"
    count = files.cite(FieldRef(CONFIG, "id2label"), ",")
    is_one = len(files.value(FieldRef(CONFIG, "id2label"))) == 1
    classes = "class" if is_one else "classes"
    text = f"A {kind} that classifies images into {count} {classes} (`{CONFIG}`)"
    if info.choice is None:
        name = files.cite(FieldRef(ORIGIN, "name"))
        is_assumed = files.value(FieldRef(ORIGIN, "architecture")) == ASSUMED_ARCHITECTURE
        text += (
            f".\nIts weights were not trained here but converted, tensor by tensor, from {name} "
            f"(`{ORIGIN}`)."
        )
        if is_assumed:
            text += "\nThe file does not declare its architecture, so it was assumed."
        return f"{text}\nThe license of the original applies."
    trained_on = files.cite_data(TRAINED_ON, files.trained_on_imagenet1k())
    text += f",\ntrained on {trained_on} (`{SHARDS}`) with imagenet_rn50."
    if info.choice.kind == "ema":
        text += "\nIts weights are averages over the training."
    if (line := files.init_from()) is None:
        return text
    origin = FieldRef(METRICS, "init_from.name", line)
    return (
        f"{text}\nTraining began with the weights of {files.cite(origin)} "
        f"({origin.describe()}).\nTheir license applies, so none is given here."
    )


def _headline(files: SourceFiles, info: CardInfo) -> str:
    """Return the result that stands for the model, as a sentence."""
    first = next(scores(files, info), None)
    if first is None:
        return "These weights were not evaluated."
    file, line, before = first.ref.file, first.ref.line, first.ref.field.removesuffix("top1")

    def ref(name: str) -> FieldRef:
        return FieldRef(file, before + name, line)

    text = f"**{files.cite_percent(first.ref)} top-1**"
    if file == EVALUATION:
        low, high = (files.cite_percent(ref(name)) for name in ("top1_low", "top1_high"))
        text += f" (95% interval {low} to {high})"
        data = files.cite_data(EVALUATED_ON, files.evaluated_on_imagenet1k())
        split, sources = f"{first.split} split", first.ref.describe()
    else:
        data = files.cite_data(TRAINED_ON, files.trained_on_imagenet1k(VALIDATION))
        split = f"{first.split} split during training"
        sources = f"{first.ref.describe()}, {SHARDS}"
    if files.has_top5(file):
        text += f" and **{files.cite_percent(ref('top5'))} top-5**"
    images = "image" if files.value(ref("num_images")) == 1 else "images"
    count = files.cite(ref("num_images"), ",")
    return f"{text} accuracy on {count} {images} of {data}, {split} ({sources})."


def _model(files: SourceFiles, info: CardInfo) -> str:
    """Return a table of the model's size, cost and image sizes, and the names of few classes."""
    size = files.cite(FieldRef(STATS, "image_size"))
    rows = [
        ["parameters", files.cite(FieldRef(STATS, "parameters"), ","), STATS],
        [f"GMACs, image of {size} px", _three_digits(files, "gmacs"), STATS],
        [f"activations, millions, image of {size} px", _three_digits(files, "activations"), STATS],
        ["training images, px", *_training_size(files)] if files.has(RECIPE) else [],
        ["test images, px", _test_size(files), PROCESSOR],
        ["license", license_of(files, info) or "that of the original weights", ""],
    ]
    if (line := files.init_from()) is not None:
        base = FieldRef(METRICS, "init_from.name", line)
        rows.append(["fine-tuned from", files.cite(base), base.describe()])
    table = "| | | source |\n|---|---:|---|\n" + "".join(_row(cells) for cells in rows if cells)
    note = (
        "GMACs are billions of multiply-adds in convolutions and the classifier; activations are "
        "the outputs\nof convolutions."
    )
    return f"{table}\n{note}{_classes(files)}"


def _three_digits(files: SourceFiles, field: str) -> str:
    """Cite a number of model_stats.json with three significant digits."""
    ref = FieldRef(STATS, field)
    return files.cite(ref, f".{max(0, 2 - math.floor(math.log10(files.value(ref))))}f")


def _training_size(files: SourceFiles) -> list[str]:
    """Return the size of training crops, and its source."""
    size = files.cite(FieldRef(RECIPE, "data.train_size"))
    final = FieldRef(RECIPE, "data.final_size")
    if files.get(final) is not None:
        size += f", growing to {files.cite(final)}"
    return [size, RECIPE]


def _test_size(files: SourceFiles) -> str:
    """Return the size of the images that the processor makes."""
    resized, cropped = (
        FieldRef(PROCESSOR, field) for field in ("size.shortest_edge", "crop_size.height")
    )
    return f"{files.cite(cropped)}, cropped from {files.cite(resized)}"


def _classes(files: SourceFiles) -> str:
    """Return the names of few classes: only the first of each, unless two classes share it."""
    labels = files.value(FieldRef(CONFIG, "id2label"))
    if len(labels) > _MAX_NAMED:
        return ""
    is_clear = len({first_name(label) for label in labels.values()}) == len(labels)
    names = [
        files.cite(FieldRef(CONFIG, f"id2label.{index}"), first_only=is_clear) for index in labels
    ]
    return f"\n\nClasses (`{CONFIG}`): {(', ' if is_clear else '; ').join(names)}."


def _results(files: SourceFiles, info: CardInfo) -> str:
    """Return the table of results."""
    rows = []
    for number, result in enumerate(files.evaluations()):
        at = f"results.{number}."
        flip = ", averaged with its mirror image" if result["flip"] else ""
        has_top5 = files.has_top5(EVALUATION)
        cells = [
            f"{_data(files, result)}, as published, {result['transform']} transform{flip}",
            files.cite_with_interval(at + "top1"),
            files.cite_with_interval(at + "top5") if has_top5 else "-",
            files.cite_percent(FieldRef(EVALUATION, f"{at}ece")),
            files.cite(FieldRef(EVALUATION, f"{at}num_images"), ","),
        ]
        rows.append(_row([*cells, FieldRef(EVALUATION, f"{at}top1").describe()]))
    choice = info.choice
    if choice and choice.line is not None:
        line, prefix = choice.line, choice.prefix
        top1, top5 = (FieldRef(METRICS, prefix + key, line) for key in ("top1", "top5"))
        data = files.cite_data(TRAINED_ON, files.trained_on_imagenet1k(VALIDATION))
        held_out = ", held out of the training images" if files.get(_HOLDOUT) else ""
        cells = [
            f"{data}, validation during training{held_out}",
            files.cite_percent(top1),
            files.cite_percent(top5) if files.has_top5(METRICS) else "-",
            "-",
            files.cite(FieldRef(METRICS, f"{prefix}num_images", line), ","),
        ]
        rows.append(_row([*cells, f"{top1.describe()}, {SHARDS}"]))
    if not rows:
        return "These weights were not evaluated."
    head = _row(["data", "top-1 (95% interval)", "top-5 (95% interval)", "ECE", "images", "source"])
    table = f"{head}|---|---:|---:|---:|---:|---|\n{''.join(rows)}"
    return table + _explained(files) if files.evaluations() else table.rstrip()


def _web_models(files: SourceFiles) -> str:
    """Return size and accuracy of the models for browsers, if there are any."""
    source = str(WEB_METRICS)
    if not files.has(source):
        return ""
    rows = []
    for name in files.value(FieldRef(source, "models")):
        at = f"models.{name}."
        cells = [
            files.cite(FieldRef(source, at + "file")),
            files.cite(FieldRef(source, at + "bytes"), ","),
            files.cite_percent(FieldRef(source, at + "top1")),
            files.cite_percent(FieldRef(source, at + "same_top1")),
        ]
        rows.append(_row([*cells, source]))
    num_images = files.cite(FieldRef(source, "num_images"), ",")
    is_imagenet1k = files.get(FieldRef(source, "dataset.is_imagenet1k")) is True
    data = files.cite_data(FieldRef(source, "dataset.name"), is_imagenet1k)
    head = _row(["model", "bytes", "top-1", "same class as these weights", "source"])
    table = f"{head}|---|---:|---:|---:|---|\n{''.join(rows)}".rstrip()
    return (
        f"\n\nThe models for browsers in `{ONNX_FOLDER}/`, on the {num_images} validation images "
        f"of {data} ({source}):\n\n{table}"
    )


def _explained(files: SourceFiles) -> str:
    """Return what the interval and ECE are."""
    interval, bins = (FieldRef(EVALUATION, name) for name in ("interval", "ece_bins"))
    text = ""
    if files.get(interval) is not None:
        text += f"Intervals: {files.cite(interval)}. "
    text += "ECE is the expected calibration error"
    if files.get(bins) is not None:
        text += f" over {files.cite(bins)} bins of confidence"
    return f"\n{text} ({EVALUATION})."


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


def _published(files: SourceFiles, info: CardInfo) -> str:
    """Return the table of published ResNet-50s, for a model of ImageNet-1k."""
    if not files.is_imagenet1k():
        return ""
    head = _row(["ResNet-50", "epochs", "test images, px", "top-1", "top-5", "source"])
    head += "|---|---:|---:|---:|---:|---|\n"
    rows = [_this_model(files, info)]
    for key, entry in read_yaml(Path(__file__).with_name(PUBLISHED)).items():
        refs = {name: FieldRef(PUBLISHED, f"{key}.{name}") for name in entry}
        scores = [
            files.cite(refs[name], _digits(entry[name])) if name in entry else "-"
            for name in ("top1", "top5")
        ]
        source = f"[{files.cite(refs['source'])}]({entry['url']}), {files.cite(refs['date'])}"
        cells = [files.cite(refs[name]) for name in ("name", "epochs", "test_size")]
        rows.append(_row([*cells, *scores, f"{source}; {refs['name'].describe()}"]))
    title = "### Published ResNet-50s, on ImageNet-1k's validation split"
    return f"\n{title}\n\n{head}{''.join(rows)}"


def _this_model(files: SourceFiles, info: CardInfo) -> str:
    """Return the row of this model among published ones, if it was evaluated on ImageNet-1k."""
    refs = leaderboard_refs(files, info)
    if not refs:
        return ""
    top1 = refs[0]
    top5 = FieldRef(top1.file, top1.field.removesuffix("1") + "5", top1.line)
    line = info.choice.line if info.choice else None
    epochs = "-" if line is None else files.cite(FieldRef(METRICS, "epoch", line), ".3g")
    sources = [PROCESSOR, top1.describe()]
    if line is not None and top1.file != METRICS:
        sources.append(FieldRef(METRICS, "epoch", line).describe())
    size = files.cite(FieldRef(PROCESSOR, "crop_size.height"))
    cells = ["**this model**", epochs, size, files.cite_percent(top1), files.cite_percent(top5)]
    return _row([*cells, ", ".join(sources)])


def _digits(fraction: float) -> str:
    """Return the format that shows a fraction as percent with the digits that it has."""
    return f".{max(len(str(fraction).partition('.')[2]) - 2, 0)}%"


def _training(files: SourceFiles, info: CardInfo) -> str:
    """Return the data, curves, hardware, time and cost of the run, and its resolved recipe."""
    if info.choice is None:
        return "See the original."
    recipe = (files.folder / RECIPE).read_text(encoding="utf-8")
    table = "".join(_row(cells) for cells in _run_facts(files, info.choice))
    parts = [
        _selected(files),
        _curves(files.folder),
        _dashboard(files),
        f"| | | source |\n|---|---:|---|\n{table}",
        f"The recipe with all its defaults, `{RECIPE}`:\n\n"
        f"<details><summary>{RECIPE}</summary>\n\n```yaml\n{recipe}```\n\n</details>",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part)


def _dashboard(files: SourceFiles) -> str:
    """Return the link to the run's Trackio dashboard, if it was synced to a Space."""
    if (space := files.dashboard()) is None:
        return ""
    url = f"https://huggingface.co/spaces/{files.value(space)}"
    return f"Dashboard of the training: [{files.cite(space)}]({url}) ({space.describe()})."


def _selected(files: SourceFiles) -> str:
    """Return which shards the data was selected or packed from, and where a hold-out was."""
    text, at, this = "", "options", "The data"
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
        spec = {float: ".2f", int: ","}.get(type(files.value(ref)), "")
        yield [name, files.cite(ref, spec), ref.describe()]


def _curves(folder: Path) -> str:
    """Return the plots that were copied, in two columns."""
    names = [name for name in _CURVES if (folder / PLOTS / f"{name}.png").is_file()]
    images = [f"![{n.replace('_', ' ')} over epochs]({PLOTS}/{n}.png)" for n in names]
    rows = [_row(images[start : start + 2]) for start in range(0, len(images), 2)]
    return f"| | |\n|---|---|\n{''.join(rows)}" if rows else ""


def _row(cells: list[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |\n"
