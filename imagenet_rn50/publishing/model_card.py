"""The commands in a card that lead to it: data, training, evaluation, and the export of both.

A card's metadata: what the Hub reads of it, each result with its place.

The model card: made of what stands beside it, each number with its place (contract 8).

`evidence` says what a place is, `trace` checks that a card keeps to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
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
    Evidence,
    Place,
    packing_command,
    packing_remark,
    place_arguments,
)
from imagenet_rn50.publishing.snippets import IMAGENET_LIMITS, LIMITS, LOADING, SNIPPETS, Format
from imagenet_rn50.runs.checkpoint import SelectedWeights
from imagenet_rn50.runs.metrics import START
from imagenet_rn50.shards.imagenet1k import HUB_NAME, is_name
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_yaml
from imagenet_rn50.utils.formatting import percent_spec

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
        needed, commands = _needed(evidence), _training_commands(evidence)
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


def _training_commands(evidence: Evidence) -> list[str]:
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


_LICENSE = "apache-2.0"
_METRICS = (("top-1", "top1"), ("top-5", "top5"))
_EVALUATED_SPLIT = Place(EVALUATION, "dataset.split")
_LIBRARIES: dict[Format, str] = {
    "transformers": "transformers",
    "torchvision": "torchvision",
    "onnx": "onnx",
}


@dataclass(frozen=True)
class Facts:
    """What a card is made of, besides its evidence.

    Attributes:
        name: The model's name.
        form: In which format the weights stand beside the card.
        dtype: Type of the weights.
        choice: Which weights of a run they are; None for weights of others, whose origin.json
            stands beside the card.
    """

    name: str
    form: Format
    dtype: str
    choice: SelectedWeights | None


def metadata(evidence: Evidence, facts: Facts) -> ModelCardData:
    """Returns what the Hub reads.

    Args:
        evidence: Where the results stand.
        facts: What else is known.
    """
    is_own = facts.choice is not None and evidence.init_from() is None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data if hub_name is None else hub_name,
            dataset_name=data,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=evidence.value(place),
            metric_args=place_arguments(place),
        )
        for data, hub_name, split, name, place in _scores(evidence, facts)
    ]
    is_imagenet1k = facts.choice is not None and evidence.trained_on_imagenet1k()
    return ModelCardData(
        license=_LICENSE if is_own else None,  # what comes of others' weights has theirs
        library_name=_LIBRARIES[facts.form],
        pipeline_tag="image-classification",
        tags=["image-classification", "resnet", "vision"],
        datasets=[HUB_NAME] if is_imagenet1k else None,
        metrics=["accuracy"],
        model_name=facts.name,
        eval_results=results or None,
    )


def has_top5(evidence: Evidence, file: str) -> bool:
    """Says whether the top-5 in a file says anything: naming five classes may name them all."""
    num_classes = len(evidence.value(Place(CONFIG, "id2label")))
    if file == EVALUATION:  # a test set may have only some of the classes
        with suppress(InputError):
            num_classes = evidence.value(Place(EVALUATION, "num_classes_counted"))
    return num_classes > TOP_K


def _metrics(evidence: Evidence, file: str) -> tuple[tuple[str, str], ...]:
    """Returns names and keys of the figures in a file that say something."""
    return _METRICS if has_top5(evidence, file) else _METRICS[:1]


def _scores(evidence: Evidence, facts: Facts) -> Iterator[tuple[str, str | None, str, str, Place]]:
    """Yields data, its name on the Hub if any, split, metric and place of each result.

    Of every set of pictures the Hub takes one figure, so it is the one that people will get:
    through the published processor, not averaged with mirror images. Where nothing was evaluated,
    what was validated while training stands for it.
    """
    best: dict[str, tuple[tuple[bool, bool], int]] = {}
    for number, result in enumerate(evaluations(evidence)):
        rank = (not result["flip"], result["transform"] == "processor")
        if result["name"] not in best or rank > best[result["name"]][0]:
            best[result["name"]] = (rank, number)
    choice = facts.choice
    for name, (_, number) in best.items():
        data, split = str(evidence.value(EVALUATED_ON)), evidence.value(_EVALUATED_SPLIT)
        is_imagenet1k = evidence.evaluated_on_imagenet1k()
        data = _without_claim(data, is_imagenet1k) + (REAL_SUFFIX if name == REAL else "")
        hub_name = HUB_NAME if is_imagenet1k and name != REAL else None
        for metric, key in _metrics(evidence, EVALUATION):
            yield data, hub_name, split, metric, Place(EVALUATION, f"results.{number}.{key}")
    if not best and choice and choice.line is not None:
        is_imagenet1k = evidence.trained_on_imagenet1k("validation")
        data = _without_claim(str(evidence.value(TRAINED_ON)), is_imagenet1k)
        for metric, key in _metrics(evidence, METRICS):
            place = Place(METRICS, choice.prefix + key, choice.line)
            yield data, HUB_NAME if is_imagenet1k else None, "validation", metric, place


def _without_claim(data: str, is_imagenet1k: bool) -> str:
    """Returns the name of a data set that was not shown to be what it is called."""
    return f"{UNVERIFIED_PREFIX}{data}" if is_name(data) and not is_imagenet1k else data


def evaluations(evidence: Evidence) -> list[dict[str, Any]]:
    """Returns the results of metrics.json, where there is one."""
    if not evidence.has(EVALUATION):
        return []
    results: list[dict[str, Any]] = evidence.value(Place(EVALUATION, "results"))
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


def model_card(folder: Path, facts: Facts) -> str:
    """Returns the README.md of an exported model.

    Args:
        folder: Where the export is written: weights, configuration and evidence stand there.
        facts: What else is known.
    """
    evidence = Evidence(folder)
    body = _TEMPLATE.read_text(encoding="utf-8").format(
        name=facts.name,
        what=_what(evidence, facts),
        results=_results(evidence, facts),
        published=_published(evidence),
        loading=LOADING[facts.form],
        snippet=SNIPPETS[facts.form],
        training=_training(evidence, facts),
        curves=_curves(folder),
        limits=LIMITS + (IMAGENET_LIMITS if evidence.is_imagenet1k() else ""),
        reproduce=reproduction(evidence, facts),
    )
    return f"---\n{metadata(evidence, facts).to_yaml()}\n---\n\n{body}"


def _what(evidence: Evidence, facts: Facts) -> str:
    """Says what the model is, in a few sentences."""
    is_resnet50 = all(evidence.value(Place(CONFIG, key)) == v for key, v in _RESNET50.items())
    kind = "ResNet-50 (v1.5: stride in the middle convolution)" if is_resnet50 else "ResNet"
    count = evidence.cite(Place(CONFIG, "id2label"), ",")
    is_one = len(evidence.value(Place(CONFIG, "id2label"))) == 1
    classes = "class of pictures" if is_one else "classes of pictures apart"
    text = f"A {kind} that tells {count} {classes} (`{CONFIG}`)."
    if facts.choice is None:
        name = evidence.cite(Place(ORIGIN, "name"))
        is_assumed = evidence.value(Place(ORIGIN, "architecture")) == ASSUMED_ARCHITECTURE
        text += (
            f"\nIts weights were not trained here: they are those of {name}, converted "
            f"tensor by tensor (`{ORIGIN}`)."
        )
        if is_assumed:
            text += "\nTheir file does not state its architecture, which was assumed."
        return f"{text}\nThe license of the original holds."
    averaged = ", averaged over training," if facts.choice.kind == "ema" else ""
    trained_on = evidence.cite_data(TRAINED_ON, evidence.trained_on_imagenet1k())
    data = f"{trained_on} (`{SHARDS}`)"
    text += f"\nIts weights{averaged} were trained on {data} with imagenet_rn50."
    if (line := evidence.init_from()) is None:
        return text
    origin = Place(METRICS, "init_from.name", line)
    return (
        f"{text}\nTraining began with the weights of {evidence.cite(origin)} "
        f"({origin.in_words()}).\nTheir license holds for what came of them, so none is given here."
    )


def _results(evidence: Evidence, facts: Facts) -> str:
    """Returns the table of what was measured here."""
    rows = [
        "| data | top-1 (95% interval) | top-5 (95% interval) | images | source |\n"
        "|---|---:|---:|---:|---|\n"
    ]
    for number, result in enumerate(evaluations(evidence)):
        at = f"results.{number}."
        scores = [_with_interval(evidence, at + "top1")]
        scores += [_with_interval(evidence, at + "top5") if has_top5(evidence, EVALUATION) else "-"]
        images = evidence.cite(Place(EVALUATION, f"{at}num_images"), ",")
        flip = ", averaged with its mirror image" if result["flip"] else ""
        cells = [
            f"{_data(evidence, result)}, as published, {result['transform']} transform{flip}",
            *scores,
            images,
        ]
        rows.append(_row([*cells, Place(EVALUATION, f"{at}top1").in_words()]))
    choice = facts.choice
    if choice and choice.line is not None:
        line, prefix = choice.line, choice.prefix
        places = [Place(METRICS, prefix + key, line) for key in ("top1", "top5")]
        data = evidence.cite_data(TRAINED_ON, evidence.trained_on_imagenet1k("validation"))
        cells = [f"{data}, validation while training"]
        shown = [_percent(evidence, place) for place in places]
        cells += shown if has_top5(evidence, METRICS) else [shown[0], "-"]
        cells.append(evidence.cite(Place(METRICS, f"{prefix}num_images", line), ","))
        rows.append(_row([*cells, f"{places[0].in_words()}, {SHARDS}"]))
    return "".join(rows).rstrip() if len(rows) > 1 else "Nothing was measured of these weights."


def _data(evidence: Evidence, result: dict[str, Any]) -> str:
    """Says which pictures a row of metrics.json is about."""
    data = evidence.value(Place(EVALUATION, "dataset"))
    text = evidence.cite_data(EVALUATED_ON, evidence.evaluated_on_imagenet1k())
    if result["name"] == data["name"]:
        return text  # a test set of files
    text += f", {data['split']}" + (", labels of ReaL" if result["name"] == REAL else "")
    trained_on = evidence.value(Place(SHARDS, "digest")) if evidence.has(SHARDS) else None
    is_other = trained_on is not None and trained_on != data.get("digest")
    return text + (" (other shards than in training)" if is_other else "")


def _published(evidence: Evidence) -> str:
    """Returns the table of other ResNet-50s, beside a model of ImageNet-1k."""
    if not evidence.is_imagenet1k():
        return ""
    head = "| published ResNet-50s on ImageNet-1k's validation set | top-1 | top-5 | source |\n"
    head += "|---|---:|---:|---|\n"
    path = Path(__file__).with_name(PUBLISHED)
    rows = []
    for key, entry in read_yaml(path).items():
        scores = [
            evidence.cite(Place(PUBLISHED, f"{key}.{name}"), ".2%") if name in entry else "-"
            for name in ("top1", "top5")
        ]
        where = f"[its authors]({entry['url']}), {Place(PUBLISHED, key).in_words()}"
        rows.append(_row([evidence.cite(Place(PUBLISHED, f"{key}.name")), *scores, where]))
    return f"\n{head}{''.join(rows)}"


def _training(evidence: Evidence, facts: Facts) -> str:
    """Returns the resolved recipe, and on what and for how long it ran."""
    if facts.choice is None:
        return "Not here; see the original."
    recipe = (evidence.folder / RECIPE).read_text(encoding="utf-8")
    table = "".join(_row(cells) for cells in _circumstances(evidence, facts.choice))
    return (
        f"| | | source |\n|---|---:|---|\n{table}\nThe recipe as resolved, `{RECIPE}`:\n\n"
        f"```yaml\n{recipe}```"
    )


def _circumstances(evidence: Evidence, choice: SelectedWeights) -> Iterator[list[str]]:
    """Yields hardware, software, time and cost as far as metrics.jsonl knows them."""
    starts = evidence.lines(START)
    machines: dict[tuple[Any, ...], int] = {}
    for number, record in starts:
        machine = tuple(record.get(name) for name in _MACHINE)
        machines.setdefault(machine, number)
    for number in machines.values():
        yield from _cited(evidence, number, _MACHINE)
    if starts:
        number, first = starts[0]
        versions = {f"versions.{name}": name for name in first.get("versions", {})}
        yield from _cited(evidence, number, {"python": "Python"} | versions)
        if (line := evidence.init_from()) is not None:
            origin = {"name": "began with the weights", "sha256": "their sha256"}
            fields = {f"init_from.{key}": told for key, told in origin.items()}
            yield from _cited(evidence, line, fields)
        everything = Place(METRICS, "starts")
        yield ["starts, the first included", evidence.cite(everything), everything.in_words()]
    unit = "hours" if evidence.value(Place(METRICS, "hours")) >= 1 else "minutes"
    for name, key, least, spec in (
        (f"{unit} of training and validation", unit, 0.05, ".1f"),
        ("images/s", "images_per_second", 5, ",.0f"),
    ):
        place = Place(METRICS, key)
        if key in evidence.summary():
            is_small = evidence.value(place) < least
            yield [name, evidence.cite(place, ".3f" if is_small else spec), place.in_words()]
    if choice.line is not None:
        yield from _cited(evidence, choice.line, {"epoch": "epochs", "samples_seen": "images seen"})
    cost = Place(METRICS, "cost_usd")
    is_known = cost.field in evidence.summary()
    yield [
        "cost, USD",
        *((evidence.cite(cost, ".2f"), cost.in_words()) if is_known else ("not recorded", "")),
    ]


def _cited(evidence: Evidence, line: int, fields: dict[str, str]) -> Iterator[list[str]]:
    """Yields a row for each field of a line of metrics.jsonl."""
    for field, name in fields.items():
        place = Place(METRICS, field, line)
        spec = ".2f" if isinstance(evidence.value(place), float) else ""
        yield [name, evidence.cite(place, spec), place.in_words()]


def _curves(folder: Path) -> str:
    """Returns the pictures of the curves that were copied."""
    names = [name for name in _CURVES if (folder / "plots" / f"{name}.png").is_file()]
    lines = [f"![{name.replace('_', ' ')} over epochs](plots/{name}.png)\n" for name in names]
    return "\n" + "".join(lines) if lines else ""


def _with_interval(evidence: Evidence, field: str) -> str:
    """Returns a fraction and its interval, as percent."""
    value, low, high = (
        _percent(evidence, Place(EVALUATION, name))
        for name in (field, f"{field}_low", f"{field}_high")
    )
    return f"{value} ({low} to {high})"


def _percent(evidence: Evidence, place: Place) -> str:
    """Cites a fraction as percent, with the digits that keep it from looking like all or none."""
    return evidence.cite(place, percent_spec(evidence.value(place)))


def _row(cells: list[str]) -> str:
    """Returns a line of a table."""
    return "| " + " | ".join(cells) + " |\n"
