"""Results as HTML. Every word that comes from a model or a file is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageOps

from space.batch import Row
from space.model import Guess

# Below this, the model itself holds it for likelier that its first guess is wrong.
LOW_CONFIDENCE = 0.5

WAITING = '<p class="waiting">The five most likely classes will stand here.</p>'


def examples_view(examples: Sequence[Path]) -> str:
    """Shows pictures that can be tried, as buttons."""
    buttons = "".join(
        f"""<button type="button" class="example" data-index="{index}">
<img src="{_thumbnail(path)}" alt="Example: {escape(path.stem)}" title="{escape(path.stem)}">
</button>"""
        for index, path in enumerate(examples)
    )
    return f'<p class="shelf-title">Or try one of these</p><div class="shelf">{buttons}</div>'


def _thumbnail(path: Path) -> str:
    with Image.open(path) as picture:
        return _data_url(ImageOps.fit(picture.convert("RGB"), (144, 144)), "JPEG")


def guesses_view(guesses: Sequence[Guess], milliseconds: float) -> str:
    """Shows classes as bars, one of which can be chosen (radio buttons: arrow keys work)."""
    choices = "".join(
        f"""<label class="guess">
<input type="radio" name="guess" value="{guess.index}" {"checked" if rank == 0 else ""}>
<span class="guess-name">{escape(guess.label)}</span>
<span class="guess-score">{guess.score:.1%}</span>
<span class="guess-bar" aria-hidden="true"><span style="width: {guess.score:.2%}"></span></span>
</label>"""
        for rank, guess in enumerate(guesses)
    )
    return f"""<fieldset class="guesses">
<legend>Most likely classes</legend>{choices}</fieldset>{_doubt(guesses)}
<p class="latency">Answered in {milliseconds:.0f} ms.</p>"""


def _doubt(guesses: Sequence[Guess]) -> str:
    """Says so when the first guess is more likely wrong than right."""
    if guesses[0].score >= LOW_CONFIDENCE:
        return ""
    return f"""<p class="note" role="status"><strong>Not sure.</strong> The model gives its first
guess {guesses[0].score:.1%}. The picture may show something that it was not trained on, or several
things.</p>"""


def problem_view(sentence: str) -> str:
    """Shows why there is no answer."""
    return f'<p class="note problem" role="alert">{escape(sentence)}</p>'


def heat_view(label: str, seen: Image.Image, heat: Image.Image | None) -> str:
    """Shows what the model saw, and what in it speaks for a class.

    Args:
        label: The class.
        seen: What the model saw, RGB.
        heat: RGBA, of the same size; None when this model has no heat map.
    """
    name = escape(label)
    base = f'<img class="seen" src="{_data_url(seen, "JPEG")}" alt="What the model saw">'
    if heat is None:
        return f"""<figure class="heat">{base}
<figcaption>What the model saw. Models of this kind have no heat map.</figcaption></figure>"""
    return f"""<figure class="heat"><div class="layers">{base}
<img class="glow" src="{_data_url(heat, "PNG")}" alt="Heat map: what speaks for {name}"></div>
<figcaption>What the model saw. Where it glows, the picture speaks for
<strong>{name}</strong>.</figcaption>
<label class="strength"><span>Picture</span><span>Heat map</span>
<input type="range" min="0" max="100" value="75" aria-label="Strength of the heat map"></label>
</figure>"""


def _data_url(picture: Image.Image, kind: str) -> str:
    """Returns a picture inside its own address: no file to keep, none to delete."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def table_view(rows: Sequence[Row]) -> str:
    """Shows a line for each file: its likeliest class, or why there is none."""
    lines = "".join(f"<tr><td>{escape(row.file)}</td>{_cells(row)}</tr>" for row in rows)
    return f"""<div class="rows" role="region" aria-label="Classes" tabindex="0"><table>
<thead><tr><th scope="col">File</th><th scope="col">Most likely</th>
<th scope="col" class="number">Confidence</th></tr></thead>
<tbody>{lines}</tbody></table></div>"""


def _cells(row: Row) -> str:
    if not row.guesses:
        return f'<td colspan="2" class="lost">{escape(row.problem)}</td>'
    first = row.guesses[0]
    return f'<td>{escape(first.label)}</td><td class="number">{first.score:.1%}</td>'


def about_view(name: str, facts: Mapping[str, str], card: str | None) -> str:
    """Shows what the model is, then its card."""
    rows = "".join(
        f"<div><dt>{escape(fact)}</dt><dd>{escape(value)}</dd></div>"
        for fact, value in ({"model": name} | dict(facts)).items()
    )
    text = card or "<p>This model comes without a card (README.md).</p>"
    return f'<dl class="facts">{rows}</dl><article class="card prose">{text}</article>'


def no_model_view(reason: str) -> str:
    """Says what to set when there is no model to serve."""
    return f"""<div class="no-model"><h1>This Space has no model yet</h1>
<p role="alert">{escape(reason)}</p>
<p>Set <code>MODEL_ID</code> to a model that transformers can load for image classification, with
its weights as safetensors, then start again:</p>
<ul>
<li>on Hugging Face: <em>Settings</em>, <em>Variables and secrets</em>, <code>MODEL_ID</code> =
<code>owner/name</code>, and <code>MODEL_REVISION</code> for a fixed version;</li>
<li>on a computer: <code>MODEL_ID=folder python app.py</code>.</li>
</ul></div>"""
