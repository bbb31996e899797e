"""The model card: made of what stands beside it, each number with its place (contract 8).

`evidence` says what a place is, `trace` checks that a card keeps to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_rn50.files import read_yaml
from imagenet_rn50.formatting import percent_spec
from imagenet_rn50.publishing.evidence import (
    EVALUATED_ON,
    PUBLISHED,
    REAL,
    TRAINED_ON,
    Evidence,
    Place,
)
from imagenet_rn50.publishing.layout import (
    ASSUMED_ARCHITECTURE,
    CONFIG,
    EVALUATION,
    METRICS,
    ORIGIN,
    RECIPE,
    SHARDS,
)
from imagenet_rn50.publishing.metadata import Facts, evaluations, has_top5, metadata
from imagenet_rn50.publishing.reproduction import reproduction
from imagenet_rn50.publishing.wording import IMAGENET_LIMITS, LIMITS, LOADING, SNIPPETS
from imagenet_rn50.runs.choice import Choice
from imagenet_rn50.runs.metrics import START

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


def _circumstances(evidence: Evidence, choice: Choice) -> Iterator[list[str]]:
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
