"""Words from models and files are shown as words, whatever is in them."""

import csv
import io
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from space.batch import Row, to_csv
from space.card import read_card
from space.model import Guess
from space.views import (
    LOW_CONFIDENCE,
    about_view,
    guesses_view,
    heat_view,
    no_model_view,
    problem_view,
    table_view,
)
from tests.app.conftest import CARD

EVIL = "</p><img src=//outside.example onerror=alert(1)>\"'${1}{{2}}&amp;"
FETCHED = {"src", "srcset", "style", "poster", "data", "background"}  # attributes
HARMLESS = ("data:", "width:", "text-align:")


class Parsed(HTMLParser):
    """What a browser makes of HTML: its text, its tags, what it would fetch."""

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
    picture = Image.new("RGB", (4, 4))
    guesses = [Guess(index=3, label=words, score=0.25)]
    return [
        guesses_view(guesses, 1.0),
        heat_view(words, picture, picture.convert("RGBA")),
        problem_view(words),
        table_view([Row(words, guesses), Row("other", problem=words)]),
        about_view(words, {"input": words}, card=None),
        no_model_view(words),
    ]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.just(EVIL))
def test_no_word_becomes_markup(words):
    harmless = "harmless"
    for html, same in zip(all_views(words), all_views(harmless), strict=True):
        parsed = Parsed(html)
        assert words in parsed.text
        assert parsed.tags == Parsed(same).tags
        assert parsed.fetched == []


def test_a_low_confidence_is_remarked_on_and_a_high_one_is_not():
    def view(score):
        return guesses_view([Guess(0, "cat", score)], 1.0)

    assert "Not sure" in view(LOW_CONFIDENCE - 0.01)
    assert "Not sure" not in view(LOW_CONFIDENCE)


def card_of(tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    html = read_card(tmp_path)
    assert html is not None
    return html


def test_a_card_shows_its_words_and_tables_and_fetches_nothing(tmp_path):
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
def test_a_card_does_no_harm(tmp_path, text):
    html = card_of(tmp_path, text)
    parsed = Parsed(html)
    assert parsed.fetched == []
    assert not {"img", "style", "iframe", "b", "script"} & set(parsed.tags)
    assert "javascript:" not in html.partition('href="')[2]


def test_a_model_without_a_card_is_served_all_the_same(tmp_path):
    assert read_card(tmp_path) is None
    assert "without a card" in about_view("name", {}, None)


def test_the_csv_holds_every_guess_and_every_problem():
    guesses = [Guess(index, f'class "{index}", ü', 0.5 / (index + 1)) for index in range(5)]
    content = to_csv([Row("a.jpg", guesses), Row("b.txt", problem="No, it is not.")])
    first, second = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    for rank, guess in enumerate(guesses, start=1):
        assert first[f"class_{rank}"] == guess.label
        assert float(first[f"score_{rank}"]) == guess.score
    assert (first["file"], first["problem"]) == ("a.jpg", "")
    assert (second["file"], second["problem"]) == ("b.txt", "No, it is not.")
    assert second["class_1"] == second["score_5"] == ""
