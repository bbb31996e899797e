"""Render results as HTML. All text from models and files is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageOps

from space.batch import Row
from space.model import Prediction

# Below this score, the top class is more likely wrong than right.
LOW_CONFIDENCE = 0.5

EMPTY = '<p class="empty">The five most likely classes appear here.</p>'


def examples_view(examples: Sequence[Path]) -> str:
    """Return example images as buttons."""
    buttons = "".join(
        f"""<button type="button" class="example" data-index="{index}">
<img src="{_thumbnail(path)}" alt="Example: {escape(path.stem)}" title="{escape(path.stem)}">
</button>"""
        for index, path in enumerate(examples)
    )
    return f'<p class="examples-title">Or try an example</p><div class="examples">{buttons}</div>'


def _thumbnail(path: Path) -> str:
    with Image.open(path) as image:
        return _data_url(ImageOps.fit(image.convert("RGB"), (144, 144)), "JPEG")


def predictions_view(predictions: Sequence[Prediction], milliseconds: float) -> str:
    """Return the classes as bars and radio buttons (arrow keys work)."""
    choices = "".join(
        f"""<label class="prediction">
<input type="radio" name="prediction" value="{prediction.index}"{"" if position else " checked"}>
<span class="prediction-name">{escape(prediction.label)}</span>
<span class="prediction-score">{prediction.score:.1%}</span>
<span class="prediction-bar" aria-hidden="true">
<span style="width: {prediction.score:.2%}"></span></span>
</label>"""
        for position, prediction in enumerate(predictions)
    )
    return f"""<fieldset class="predictions">
<legend>Most likely classes</legend>{choices}</fieldset>{_low_confidence_note(predictions)}
<p class="latency">Took {milliseconds:.0f} ms.</p>"""


def _low_confidence_note(predictions: Sequence[Prediction]) -> str:
    """Return a note if the top class is more likely wrong than right."""
    if predictions[0].score >= LOW_CONFIDENCE:
        return ""
    return f"""<p class="note" role="status"><strong>Low confidence.</strong> The top
class has a score of only {predictions[0].score:.1%}. The image may show several things, or
something that the model was not trained on.</p>"""


def error_view(message: str) -> str:
    """Return an error message."""
    return f'<p class="note error" role="alert">{escape(message)}</p>'


def heat_map_view(label: str, crop: Image.Image, heat_map: Image.Image | None) -> str:
    """Return the crop that the model sees, with the heat map of a class as an overlay.

    Args:
        label: Class name.
        crop: The crop that the model sees, RGB.
        heat_map: RGBA, of the same size; None if the model has no heat map.
    """
    name = escape(label)
    base = f'<img class="crop" src="{_data_url(crop, "JPEG")}" alt="What the model sees">'
    if heat_map is None:
        return f"""<figure class="heat-map">{base}
<figcaption>What the model sees. This architecture has no heat map.</figcaption></figure>"""
    return f"""<figure class="heat-map"><div class="layers">{base}
<img class="overlay" src="{_data_url(heat_map, "PNG")}" alt="Heat map: {name}"></div>
<figcaption>Why the model thinks so: the bright areas raise the score of
<strong>{name}</strong>.</figcaption>
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
    return f'<td>{escape(first.label)}</td><td class="number">{first.score:.1%}</td>'


def about_view(name: str, summary: Mapping[str, str], card: str | None) -> str:
    """Return the summary of the model, followed by its card."""
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
</ul></div>"""
