"""What the command writes and prints, and that its page can stand alone."""

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, Value

from imagenet_rn50.__main__ import main
from imagenet_rn50.evaluation import report as report_module
from imagenet_rn50.evaluation.datasets import ShardImages, read_folder
from imagenet_rn50.evaluation.evaluate import evaluate
from imagenet_rn50.evaluation.load_model import load_model
from imagenet_rn50.evaluation.output import (
    metrics_of,
    num_classes_counted,
    results_table,
    write_evaluation,
)
from imagenet_rn50.evaluation.statistics import calibration, wilson
from imagenet_rn50.shards.store import LocalShards
from tests.evaluation.models import (
    classes_of,
    export_model,
    label_shards,
    painted_model,
    picture_of,
    random_model,
    write_run,
)

NUM_CLASSES = 8


class Page(HTMLParser):
    """Collects what a page shows and refers to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def evaluate_by_command(monkeypatch, *arguments):
    command = ["imagenet_rn50", "evaluate", "--workers", "0", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", command)
    main()


@pytest.mark.usefixtures("blank_plots")
def test_the_command_writes_metrics_classes_and_a_report_of_a_run(tmp_path, monkeypatch, capsys):
    keys = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 12)]
    shards = label_shards(tmp_path / "shards", [4, 7], NUM_CLASSES, keys=keys)
    run, out = write_run(tmp_path / "run", shards, NUM_CLASSES, ema=True), tmp_path / "a" / "b"
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[0, 1, 2]] * 10 + [[]]), encoding="utf-8")
    evaluate_by_command(
        monkeypatch,
        *("--model", run, "--shards", shards, "--checkpoint", "last", "--weights", "raw"),
        *("--flip", "--real", real, "--out", out),
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["schema"] == 1
    assert metrics["split"] == "validation"
    assert metrics["checkpoint"]["samples_seen"] == 48
    assert metrics["checkpoint"]["weights"] == "raw"
    rows = [(row["name"], row["transform"], row["flip"]) for row in metrics["results"]]
    ways = [(name, flip) for name in ("training", "processor") for flip in (False, True)]
    assert rows == [(name, *way) for name in ("validation", "real") for way in ways]
    for row in metrics["results"]:
        assert row["num_images"] == (11 if row["name"] == "validation" else 10)
        assert 0 <= row["top1_low"] <= row["top1"] <= row["top1_high"] <= 1
        assert 0 <= row["top5_low"] <= row["top5"] <= row["top5_high"] <= 1
        assert row["top1"] <= row["top5"]
        assert (row["loss"] is None) == (row["name"] == "real")

    with (out / "per_class.csv").open(newline="", encoding="utf-8") as file:
        classes = list(csv.DictReader(file))
    right = sum(float(row["top1"]) * int(row["num_images"]) for row in classes)
    assert right / 11 == pytest.approx(metrics["results"][0]["top1"])
    known = classes_of(NUM_CLASSES)
    for row in classes:
        index = int(row["index"])
        assert (row["wnid"], row["label"]) == (known.wnids[index], known.labels[index])
        hits = round(float(row["top1"]) * int(row["num_images"]))
        assert float(row["top1_low"]) == wilson(hits, int(row["num_images"])).low
    printed = capsys.readouterr().out
    assert f"{metrics['results'][0]['top1']:.2%}" in printed
    assert len(re.findall(r"^(validation|real) ", printed, re.MULTILINE)) == 8


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a set with known mistakes, whose names try to be markup."""
    tmp_path = tmp_path_factory.mktemp("report")
    classes = classes_of(NUM_CLASSES)
    markup = [f"name{i} <b>&\"'" for i in range(NUM_CLASSES)]
    classes = type(classes)(classes.wnids, tuple(markup))
    for label in range(NUM_CLASSES):
        folder = tmp_path / "set" / classes.wnids[label]
        folder.mkdir(parents=True)
        (folder / "right.JPEG").write_bytes(picture_of(label))
    (tmp_path / "set" / classes.wnids[3] / "wrong.JPEG").write_bytes(picture_of(6))
    loaded = painted_model(NUM_CLASSES, classes)
    images = read_folder(tmp_path / "set", NUM_CLASSES, classes)
    evaluation = evaluate(loaded, images)
    write_evaluation(tmp_path / "out", loaded, images, evaluation, classes)
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8"), metrics_of(
        loaded, images, evaluation
    )


def test_the_report_refers_to_nothing_outside_itself(report):
    page, _ = report
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    for _, attributes in Page(page).tags:
        for name in ("src", "srcset", "href", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert "url(" not in page
    assert "@import" not in page


def test_the_report_shows_the_mistakes_with_their_pictures_and_the_numbers_of_the_metrics(report):
    page, metrics = report
    parsed = Page(page)
    first = metrics["results"][0]
    assert first["top1"] == 8 / 9
    assert f"{first['top1']:.2%}" in parsed.text
    assert f"{first['top1_low']:.2%} to {first['top1_high']:.2%}" in parsed.text
    pictures = [image for image in parsed.all("img") if "jpeg" in image["src"]]
    assert len(pictures) == 1
    assert "wrong.JPEG" in pictures[0]["alt"]
    assert "predicted name6" in pictures[0]["alt"]


def test_the_report_can_be_read_without_seeing_it_and_keeps_names_as_text(report):
    page, _ = report
    parsed = Page(page)
    assert not parsed.all("b")
    assert "name6 <b>&\"'" in parsed.text
    assert parsed.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in parsed.all("img"))
    assert all(cell["scope"] in {"col", "row"} for cell in parsed.all("th"))
    assert len(parsed.all("table")) == 3  # results, all classes, confusions


@pytest.fixture
def blank_plots(monkeypatch):
    """Spare tests of a page's text the seconds that drawing takes."""
    blank = io.BytesIO()
    PIL.Image.new("L", (1, 1)).save(blank, "PNG")
    monkeypatch.setattr(report_module, "png_of", lambda figure: blank.getvalue())


def class_rows(page):
    """Returns the classes of each table of classes."""
    tables = re.findall(r"<caption>([^<]*class[^<]*)</caption>(.*?)</table>", page, re.S)
    return {
        caption: re.findall(r'<th scope="row">(\w+)</th>', rows)
        for caption, rows in tables
        if "most often" in rows
    }


@pytest.mark.usefixtures("blank_plots")
@pytest.mark.parametrize(
    ("num_classes", "has_matrix", "has_histogram"),
    [(1, False, False), (2, True, False), (20, True, False), (21, True, True)],
)
def test_a_report_shows_what_can_be_read_of_so_many_classes_and_each_class_once(
    tmp_path, num_classes, has_matrix, has_histogram
):
    evaluated_pictures(tmp_path, [(label, label) for label in range(num_classes)], num_classes)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    drawn = " ".join(image["alt"] for image in Page(page).all("img"))
    assert ("Confusion matrix" in drawn) == has_matrix
    assert ("Histogram" in drawn) == has_histogram
    tables = class_rows(page)  # the worst and the best, where they are not all
    shown = [name for rows in tables.values() for name in rows]
    assert len(shown) == len(set(shown)) == min(num_classes, 20)
    assert len(tables) == (1 if num_classes <= 20 else 2)


def plot_matrix(num_classes):
    counts = np.full((num_classes, num_classes), 1)
    report_module.matrix_plot(counts, [f"name{i}" for i in range(num_classes)])


@pytest.mark.parametrize(
    "plot",
    [
        lambda: plot_matrix(2),
        lambda: plot_matrix(21),
        lambda: report_module.class_plot(np.linspace(0, 1, 21)),
        lambda: report_module.reliability_plot(
            calibration(np.array([0.2, 0.9]), np.array([True, False]))
        ),
    ],
    ids=["matrix of 2", "matrix of 21", "histogram", "reliability"],
)
def test_every_axis_of_every_plot_has_a_label_and_accuracies_are_percentages(plot, monkeypatch):
    figures = []

    def keep(figure):
        figures.append(figure)
        return b""

    monkeypatch.setattr(report_module, "png_of", keep)
    plot()
    assert len(figures) == 2  # for light and dark pages
    for figure in figures:
        figure.draw_without_rendering()
        (*_, lowest) = figure.axes
        assert all(axes.get_ylabel() for axes in figure.axes)
        assert any(axes.get_xlabel() for axes in figure.axes), lowest
        ticks = {
            tick.get_text()
            for axes in figure.axes
            for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())
        }
        assert "100%" in ticks
        assert "1.0" not in ticks


@pytest.mark.usefixtures("blank_plots")
def test_a_model_without_mistakes_has_a_report(tmp_path):
    for label in range(NUM_CLASSES):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        (tmp_path / "set" / str(label) / "0.JPEG").write_bytes(picture_of(label))
    loaded = painted_model(NUM_CLASSES)
    images = read_folder(tmp_path / "set", NUM_CLASSES, None)
    evaluation = evaluate(loaded, images, transform="training")
    write_evaluation(tmp_path, loaded, images, evaluation, None)
    assert "every prediction was right" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_mistake_of_the_user_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate_by_command(monkeypatch, "--model", tmp_path / "nothing", "--images", tmp_path)
    assert caught.value.code == 2
    assert "there is no model" in capsys.readouterr().err


def test_the_evaluators_workflow_counts_what_the_command_counts(tmp_path):
    import evaluate as hugging_face

    export_model(tmp_path / "model", random_model(NUM_CLASSES))
    shards = label_shards(tmp_path / "shards", [9, 8], NUM_CLASSES)
    images = ShardImages(LocalShards(shards), "validation")
    loaded = load_model(str(tmp_path / "model"))
    rows = evaluate(loaded, images, transform="processor").results
    assert 0 < rows[0].top1 < 1

    paths = [tmp_path / f"{index}.jpg" for index in range(17)]
    for index, path in enumerate(paths):
        path.write_bytes(images.read(index))
    features = Features({"image": Image(), "label": Value("int64")})
    columns = {"image": [str(path) for path in paths], "label": images.labels.tolist()}
    measured = hugging_face.evaluator("image-classification").compute(
        model_or_pipeline=str(tmp_path / "model"),
        data=Dataset.from_dict(columns, features=features),
        metric=hugging_face.load("imagenet_rn50/evaluation/topk_accuracy.py"),
        label_mapping={name: index for index, name in enumerate(loaded.labels)},
    )
    assert measured["top1"] == rows[0].top1
    assert measured["num_images"] == 17


def evaluated_pictures(tmp_path, labels, num_classes):
    """Evaluates a model that is right of every picture, over one picture of each label."""
    classes = classes_of(num_classes)
    for number, (truth, shown) in enumerate(labels):
        folder = tmp_path / "set" / classes.wnids[truth]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.JPEG").write_bytes(picture_of(shown))
    loaded = painted_model(num_classes, classes)
    images = read_folder(tmp_path / "set", num_classes, classes)
    evaluation = evaluate(loaded, images)
    write_evaluation(tmp_path / "out", loaded, images, evaluation, classes)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    counted = num_classes_counted(loaded, images)
    return " ".join(page.split()), results_table(evaluation.results, counted)


@pytest.mark.usefixtures("blank_plots")
@pytest.mark.parametrize(("present", "says"), [(2, False), (5, False), (6, True)])
def test_top5_is_no_result_where_five_classes_are_all(tmp_path, present, says):
    labels = [(label, label) for label in range(present)]
    page, table = evaluated_pictures(tmp_path, labels, NUM_CLASSES)
    assert ("100.00% top-5" in page) == says
    assert ("Top-5 is omitted" in page) == (not says)
    (top5,) = set(re.findall(r"100\.00% \(.*?\) +(\S+)", table))
    assert top5 == ("100.00%" if says else "-")


@pytest.mark.usefixtures("blank_plots")
def test_a_single_image_is_one_image(tmp_path):
    page, _ = evaluated_pictures(tmp_path, [(3, 3)], NUM_CLASSES)
    assert "1 image of set" in page
