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
from space.model import Answer, Prediction
from space.views import (
    LOW_CONFIDENCE,
    Timed,
    about_view,
    answers_view,
    error_view,
    examples_view,
    heading_view,
    heat_map_view,
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
    predictions = [Prediction(index=3, label=words, score=0.25, name=words)]
    answer = Answer(predictions, is_unfamiliar=True)
    return [
        heading_view("Title", [words], num_models=1),
        answers_view([Timed(words, "1 MB", answer, 1.0)]),
        answers_view([Timed(words, "1 MB", answer, 1.0), Timed("other", words, answer, 1.0)]),
        heat_map_view(words, image, image.convert("RGBA")),
        heat_map_view("name", image, image.convert("RGBA"), words),
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


def timed(model="model", *, score=0.9, names=("cat", "dog"), **options):
    predictions = [
        Prediction(number, f"{name}, synonym", score / (number + 1), name)
        for number, name in enumerate(names)
    ]
    is_unfamiliar = options.pop("is_unfamiliar", None)
    return Timed(model, "1 MB", Answer(predictions, is_unfamiliar), 1.0, **options)


def test_only_a_low_confidence_gets_a_note():
    assert "Low confidence" in answers_view([timed(score=LOW_CONFIDENCE - 0.01)])
    assert "Low confidence" not in answers_view([timed(score=LOW_CONFIDENCE)])


def test_an_unfamiliar_image_gets_one_note_above_the_classes():
    html = answers_view([timed(score=0.1, is_unfamiliar=True, false_alarm_rate=0.05)])
    assert html.index("Unlike the images") < html.index("<fieldset")
    assert "5.0%" in html
    assert "Low confidence" not in html
    for known in (False, None):
        assert "Unlike the images" not in answers_view([timed(is_unfamiliar=known)])


def test_the_first_synonym_is_shown_and_the_others_on_hover():
    html = answers_view([timed()])
    assert "synonym" not in Parsed(html).text
    assert 'title="cat, synonym"' in html


@pytest.mark.parametrize(
    ("other", "agree", "num_marks"),
    [(("cat", "bird"), True, 2), (("dog", "cat"), False, 4), (("owl", "bird"), False, 0)],
)
def test_agreement_of_models_is_marked(other, agree, num_marks):
    html = answers_view([timed("a"), timed("b", names=other)])
    assert ("Both models say" in html) is agree
    assert ("The models disagree" in html) is not agree
    assert html.count("listed by all models") == num_marks
    assert html.count("1 MB") == html.count("Took 1 ms") == 2


def test_the_number_of_an_example_is_not_part_of_its_name(tmp_path):
    for name in ("01 zero.jpg", "2.jpg", "3 .jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    html = examples_view(sorted(tmp_path.iterdir()))
    for name in ("zero", "2", "3 "):
        assert f'alt="Example: {name}"' in html


def card_of(tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    html = read_card(tmp_path)
    assert html is not None
    return html


def test_a_card_keeps_text_and_tables_and_loads_nothing(tmp_path):
    parsed = Parsed(card_of(tmp_path, CARD))
    assert "12.5%" in parsed.text
    assert "a plot" not in parsed.text
    assert "a link" in parsed.text
    assert "license" not in parsed.text
    assert {"table", "a"} <= set(parsed.tags)
    assert not {"img", "script"} & set(parsed.tags)
    assert parsed.fetched == []


def test_a_card_shows_image_files_of_its_folder_only(tmp_path):
    folder = tmp_path / "model"
    (folder / "plots").mkdir(parents=True)
    for path in (folder / "plots" / "loss.png", folder / "a curve.jpg", tmp_path / "outside.png"):
        Image.new("RGB", (4, 4)).save(path)
    (folder / "text.png").write_text("no image")
    (folder / "script.svg").write_text("<svg/>")
    shown = ["plots/loss.png", "<a curve.jpg>", "./plots/loss.png"]
    hidden = ["../outside.png", f"{tmp_path}/outside.png", "plots/~/loss.png", "c:/loss.png"]
    hidden += ["text.png", "script.svg", "missing.png", "plots/../../outside.png", "plots/a%00.png"]
    html = card_of(folder, "\n\n".join(f"![words]({name})" for name in shown + hidden))
    assert html.count("<img") == len(shown)
    assert html.count('alt="words"') == len(shown)
    assert "words" not in Parsed(html).text


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
        Prediction(index, f'class "{index}", ü', 0.5 / (index + 1), "name") for index in range(5)
    ]
    content = to_csv([Row("a.jpg", predictions, True), Row("b.txt", error="No, it is not.")])
    first, second = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    for rank, prediction in enumerate(predictions, start=1):
        assert first[f"class_{rank}"] == prediction.label
        assert float(first[f"score_{rank}"]) == prediction.score
    assert (first["file"], first["error"], first["unfamiliar"]) == ("a.jpg", "", "true")
    assert (second["file"], second["error"]) == ("b.txt", "No, it is not.")
    assert second["unfamiliar"] == ""
    assert second["class_1"] == second["score_5"] == ""
