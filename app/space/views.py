"""Render results as HTML. All text from models and files is escaped here."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageOps

from space.batch import Row
from space.heatmap import METHOD, METHOD_URL
from space.model import NUM_PREDICTIONS, Answer, Prediction

# Below this score, the top class is more likely wrong than right.
LOW_CONFIDENCE = 0.5

EMPTY = '<p class="empty">The five most likely classes appear here.</p>'

_MAX_LISTED = 12  # classes in the heading
_NUMBER = re.compile(r"^\d+ (?=\S)")  # in the file names of exported examples


@dataclass(frozen=True)
class Timed:
    """The answer of one model.

    Attributes:
        model: Title of the model.
        size: Its size, in words.
        answer: Its answer.
        milliseconds: How long opening the image and classifying it took.
        false_alarm_rate: Fraction of the validation images that it calls unfamiliar, if known.
    """

    model: str
    size: str
    answer: Answer
    milliseconds: float
    false_alarm_rate: float | None = None


def heading_view(title: str, names: Sequence[str], *, num_models: int) -> str:
    """Return the heading of the page, with what the model knows.

    Args:
        title: Title of the page.
        names: Class names of the first model.
        num_models: Number of models.
    """
    who = "A neural network picks" if num_models == 1 else f"{num_models} neural networks pick"
    most = min(len(names), NUM_PREDICTIONS)
    listed = ", ".join(escape(name) for name in names[:_MAX_LISTED])
    more = ", …" if len(names) > _MAX_LISTED else ""
    return f"""<h1>{title}</h1><p>{who} the {most} most likely of {len(names):,} classes and
show{"s" if num_models == 1 else ""} why. Any image gets an answer, also one that shows none
of these: <span class="known">{listed}{more}</span></p>"""


def examples_view(examples: Sequence[Path]) -> str:
    """Return example images as buttons."""
    if not examples:
        return ""
    buttons = "".join(
        f"""<button type="button" class="example" data-index="{index}">
<img src="{_thumbnail(path)}" alt="Example: {escape(name)}" title="{escape(name)}">
</button>"""
        for index, path in enumerate(examples)
        for name in [_NUMBER.sub("", path.stem)]
    )
    return f'<p class="examples-title">Or try an example</p><div class="examples">{buttons}</div>'


def _thumbnail(path: Path) -> str:
    with Image.open(path) as image:
        return _data_url(ImageOps.fit(image.convert("RGB"), (144, 144)), "JPEG")


def answers_view(answers: Sequence[Timed]) -> str:
    """Return the answer of each model, side by side if there are several."""
    if len(answers) == 1:
        return _answer(answers[0], 0, shared=frozenset())
    named = [{_key(prediction) for prediction in one.answer.predictions} for one in answers]
    shared = frozenset(set.intersection(*named))
    columns = "".join(
        f"""<section class="answer" aria-label="{escape(one.model)}"><h2>{escape(one.model)}</h2>
<p class="latency">{escape(one.size)}</p>{_answer(one, number, shared)}</section>"""
        for number, one in enumerate(answers)
    )
    return f'{_agreement(answers)}<div class="answers">{columns}</div>'


def _key(prediction: Prediction) -> str:
    """Return what two models must have in common for a class to be the same."""
    return prediction.name.casefold()


def _agreement(answers: Sequence[Timed]) -> str:
    """Return whether all models name the same class first."""
    firsts = [one.answer.predictions[0] for one in answers]
    everyone = "Both" if len(answers) == 2 else f"All {len(answers)}"
    if len({_key(first) for first in firsts}) == 1:
        text = f"✓ {everyone} models say <strong>{escape(firsts[0].name)}</strong>."
        return f'<p class="agreement agree" role="status">{text}</p>'
    text = "The models disagree. Classes that all of them list are marked with ✓."
    return f'<p class="agreement" role="status">{text}</p>'


def _answer(one: Timed, number: int, shared: Set[str]) -> str:
    """Return the classes as bars and radio buttons (arrow keys work), with notes above and below.

    Args:
        one: The answer.
        number: Number of the model on the page.
        shared: Keys of the classes that all models list.
    """
    predictions = one.answer.predictions
    choices = "".join(
        f"""<label class="prediction" title="{escape(prediction.label)}">
<input type="radio" name="prediction-{number}" value="{prediction.index}" {checked}>
<span class="prediction-name">{escape(prediction.name)}{_mark(prediction, shared)}</span>
<span class="prediction-score">{prediction.score:.1%}</span>
<span class="prediction-bar" aria-hidden="true">
<span style="width: {prediction.score:.2%}"></span></span>
</label>"""
        for prediction in predictions
        for checked in ["checked" if prediction is predictions[0] else ""]
    )
    return f"""{_unfamiliar_note(one)}<fieldset class="predictions">
<legend>Most likely classes</legend>{choices}</fieldset>{_low_confidence_note(one)}
<p class="latency">Took {one.milliseconds:.0f} ms.</p>"""


def _mark(prediction: Prediction, shared: Set[str]) -> str:
    if _key(prediction) not in shared:
        return ""
    return ' <span class="shared" role="img" aria-label="listed by all models">✓</span>'


def _unfamiliar_note(one: Timed) -> str:
    """Return a note if the image is unlike those that the model saw."""
    if not one.answer.is_unfamiliar:
        return ""
    rate = ""
    if one.false_alarm_rate is not None:
        rate = f" {one.false_alarm_rate:.1%} of its validation images get this note, too."
    return f"""<p class="note unfamiliar" role="status"><strong>Unlike the images that this model
saw.</strong> It may show something else than the classes below, so do not trust them.{rate}</p>"""


def _low_confidence_note(one: Timed) -> str:
    """Return a note if the top class is more likely wrong than right."""
    score = one.answer.predictions[0].score
    if score >= LOW_CONFIDENCE or one.answer.is_unfamiliar:
        return ""
    return f"""<p class="note" role="status"><strong>Low confidence.</strong> The top
class has a score of only {score:.1%}. The image may show several things, or
something that the model was not trained on.</p>"""


def error_view(message: str) -> str:
    """Return an error message."""
    return f'<p class="note error" role="alert">{escape(message)}</p>'


def heat_maps_view(figures: Sequence[str]) -> str:
    """Return the figures of `heat_map_view`, one per model, side by side."""
    if len(figures) == 1:
        return figures[0]
    return f'<div class="heat-maps">{"".join(figures)}</div>'


def heat_map_view(
    label: str, crop: Image.Image, heat_map: Image.Image | None, model: str = ""
) -> str:
    """Return the crop that the model sees, with the heat map of a class as an overlay.

    Args:
        label: Class name.
        crop: The crop that the model sees, RGB.
        heat_map: RGBA, of the same size; None if the model has no heat map.
        model: Title of the model; "" if it is the only one.
    """
    name = escape(label)
    who = f"<strong>{escape(model)}</strong>: " if model else ""
    base = f'<img class="crop" src="{_data_url(crop, "JPEG")}" alt="What the model sees">'
    if heat_map is None:
        return f"""<figure class="heat-map">{base}
<figcaption>{who}What the model sees. This architecture has no heat map.</figcaption></figure>"""
    return f"""<figure class="heat-map"><div class="layers">{base}
<img class="overlay" src="{_data_url(heat_map, "PNG")}" alt="Heat map: {name}"></div>
<figcaption>{who}Why the model thinks so: the bright areas raise the score of
<strong>{name}</strong> more than the rest of the image does. Method:
<a href="{METHOD_URL}" target="_blank" rel="noopener noreferrer">{METHOD}</a>.</figcaption>
<label class="strength"><span>Image</span><span>Heat map</span>
<input type="range" min="0" max="100" value="75" aria-label="Strength of the heat map"></label>
</figure>"""


def _data_url(image: Image.Image, kind: str) -> str:
    """Return an image as a data URL, so there is no file to serve and delete."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def table_view(rows: Sequence[Row]) -> str:
    """Return a table of the most likely class of each file, or its error."""
    lines = "".join(f"<tr><td>{escape(row.file)}</td>{_cells(row)}</tr>" for row in rows)
    return f"""<div class="rows" role="region" aria-label="Classes" tabindex="0"><table>
<thead><tr><th scope="col">File</th><th scope="col">Most likely</th>
<th scope="col" class="number">Confidence</th></tr></thead>
<tbody>{lines}</tbody></table></div>"""


def _cells(row: Row) -> str:
    if not row.predictions:
        return f'<td colspan="2" class="error">{escape(row.error)}</td>'
    first = row.predictions[0]
    note = "" if not row.is_unfamiliar else '<br><span class="unlike">unlike its images</span>'
    return (
        f'<td title="{escape(first.label)}">{escape(first.name)}{note}</td>'
        f'<td class="number">{first.score:.1%}</td>'
    )


def about_view(name: str, summary: Mapping[str, str], card: str | None) -> str:
    """Return the summary of a model, followed by its card."""
    rows = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>"
        for key, value in ({"model": name} | dict(summary)).items()
    )
    text = card or "<p>This model has no model card (README.md).</p>"
    return f'<dl class="summary">{rows}</dl><article class="card prose">{text}</article>'


def setup_view(error: str) -> str:
    """Return setup instructions for a Space without a usable model."""
    return f"""<div class="setup"><h1>This Space has no model yet</h1>
<p role="alert">{escape(error)}</p>
<p>Set <code>MODEL_ID</code> to a transformers model for image classification with safetensors
weights, then restart:</p>
<ul>
<li>on Hugging Face: <em>Settings</em>, <em>Variables and secrets</em>, <code>MODEL_ID</code> =
<code>owner/name</code>, and optionally <code>MODEL_REVISION</code> to pin a version;</li>
<li>locally: <code>MODEL_ID=folder python app.py</code>.</li>
</ul><p>Several models, separated by commas, are compared side by side.</p></div>"""
