"""Text from models and files is escaped, whatever it contains."""

import csv
import io
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from space.batch import Row, to_csv
from space.card import read_card
from space.model import Prediction
from space.views import (
    LOW_CONFIDENCE,
    about_view,
    error_view,
    heat_map_view,
    predictions_view,
    setup_view,
    table_view,
)
from tests.app.conftest import CARD

EVIL = "</p><img src=//outside.example onerror=alert(1)>\"'${1}{{2}}&amp;"
FETCHED = {"src", "srcset", "style", "poster", "data", "background"}  # attributes
HARMLESS = ("data:", "width:", "text-align:")


class Parsed(HTMLParser):
    """Parsed HTML: its text, its tags and the URLs that a browser would load."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.fetched = "", [], []
        self.feed(html)
        self.close()

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [
            value
            for name, value in attributes
            if name in FETCHED and value and not value.startswith(HARMLESS)
        ]
        assert not any(name.startswith("on") for name, _ in attributes)


def all_views(words):
    image = Image.new("RGB", (4, 4))
    predictions = [Prediction(index=3, label=words, score=0.25)]
    return [
        predictions_view(predictions, 1.0),
        heat_map_view(words, image, image.convert("RGBA")),
        error_view(words),
        table_view([Row(words, predictions), Row("other", error=words)]),
        about_view(words, {"input": words}, card=None),
        setup_view(words),
    ]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.just(EVIL))
def test_text_never_becomes_markup(words):
    harmless = "harmless"
    for html, same in zip(all_views(words), all_views(harmless), strict=True):
        parsed = Parsed(html)
        assert words in parsed.text
        assert parsed.tags == Parsed(same).tags
        assert parsed.fetched == []


def test_only_a_low_confidence_gets_a_note():
    def view(score):
        return predictions_view([Prediction(0, "cat", score)], 1.0)

    assert "Low confidence" in view(LOW_CONFIDENCE - 0.01)
    assert "Low confidence" not in view(LOW_CONFIDENCE)


def card_of(tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    html = read_card(tmp_path)
    assert html is not None
    return html


def test_a_card_keeps_text_and_tables_and_loads_nothing(tmp_path):
    parsed = Parsed(card_of(tmp_path, CARD))
    assert "12.5%" in parsed.text
    assert "a plot" in parsed.text
    assert "a link" in parsed.text
    assert "license" not in parsed.text
    assert {"table", "a"} <= set(parsed.tags)
    assert not {"img", "script"} & set(parsed.tags)
    assert parsed.fetched == []


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "[x](data:text/html;base64,AAAA)",
        "![x][1]\n\n[1]: https://outside.example/x.png",
        "<style>@import '//outside.example';</style>",
        "a <b onclick=alert(1)>b</b>",
        "<iframe src='//outside.example'></iframe>",
        "---\nnever: closed\n",
        "",
    ],
)
def test_unsafe_parts_of_a_card_are_removed(tmp_path, text):
    html = card_of(tmp_path, text)
    parsed = Parsed(html)
    assert parsed.fetched == []
    assert not {"img", "style", "iframe", "b", "script"} & set(parsed.tags)
    assert "javascript:" not in html.partition('href="')[2]


def test_a_missing_card_is_reported_on_the_page(tmp_path):
    assert read_card(tmp_path) is None
    assert "no model card" in about_view("name", {}, None)


def test_the_csv_holds_every_guess_and_every_problem():
    predictions = [
        Prediction(index, f'class "{index}", ü', 0.5 / (index + 1)) for index in range(5)
    ]
    content = to_csv([Row("a.jpg", predictions), Row("b.txt", error="No, it is not.")])
    first, second = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    for rank, prediction in enumerate(predictions, start=1):
        assert first[f"class_{rank}"] == prediction.label
        assert float(first[f"score_{rank}"]) == prediction.score
    assert (first["file"], first["error"]) == ("a.jpg", "")
    assert (second["file"], second["error"]) == ("b.txt", "No, it is not.")
    assert second["class_1"] == second["score_5"] == ""
