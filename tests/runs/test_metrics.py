import errno
import io

import pytest
import torch
from torch.nn import functional

from imagenet_rn50.classes import Classes
from imagenet_rn50.learning_rate import learning_rate, plateau_cuts
from imagenet_rn50.recipe import Recipe, ScheduleRecipe
from imagenet_rn50.runs import plots as report
from imagenet_rn50.runs.metrics import TRAIN, VALIDATION, MetricsLogger, read_metrics
from imagenet_rn50.runs.plots import logs_markdown, save_figure
from imagenet_rn50.utils.errors import InputError


def write_two_epochs(run, **averaged):
    """A run of two epochs; `averaged` is what validation says of averaged weights."""
    journal = MetricsLogger(run, 0)
    for epoch, top1 in ((1, 0.5), (2, 0.75)):
        for part, (images, seconds) in enumerate(((30, 1.0), (10, 3.0))):
            journal.write(
                TRAIN,
                epoch * 40 - 10 * (1 - part),
                float(epoch),
                loss=2.0 + part,
                num_images=images,
                seconds=seconds,
                images_per_second=images / seconds,
                data_wait=0.5 * part,
                lr=0.1,
            )
        values = {"top1": top1, "top5": 1.0, "loss": 1.5, "num_images": 8} | averaged
        journal.write(VALIDATION, epoch * 40, float(epoch), **values)
    return journal


def test_going_on_forgets_the_steps_that_will_be_run_again(tmp_path):
    write_two_epochs(tmp_path).close()
    MetricsLogger(tmp_path, 40).close()
    assert [r["samples_seen"] for r in read_metrics(tmp_path)] == [30, 40, 40]


def test_a_line_that_a_kill_cut_short_is_ignored(tmp_path):
    write_two_epochs(tmp_path).close()
    path = tmp_path / "metrics.jsonl"
    whole = read_metrics(tmp_path)
    path.write_text(path.read_text()[:-5])
    assert read_metrics(tmp_path) == whole[:-1]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    write_two_epochs(tmp_path).close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"kind"', "kind", 1))
    with pytest.raises(InputError, match=r"line 1 of .*metrics\.jsonl is not valid JSON"):
        read_metrics(tmp_path)


def test_the_best_is_the_best_before_and_after_a_restart(tmp_path):
    journal = write_two_epochs(tmp_path)
    assert journal.best_score() == 0.75
    journal.close()
    journal = MetricsLogger(tmp_path, 40)
    assert journal.best_score() == 0.5
    journal.close()


class Disk(io.FileIO):
    """A file on a disk with so much room."""

    room = 0

    def write(self, content):
        if not Disk.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_written = super().write(content[: Disk.room])
        Disk.room -= num_written
        return num_written


def test_lines_that_find_no_room_wait_until_they_do_and_that_is_told_once(tmp_path, capsys):
    journal = MetricsLogger(tmp_path, 0)
    journal._file.close()
    journal._file = Disk(tmp_path / "metrics.jsonl", "ab")
    for number, room in enumerate((1000, 50, 0, 0)):
        Disk.room = room
        journal.write(TRAIN, number, 1.0)
    assert [line["samples_seen"] for line in read_metrics(tmp_path)] == [0]
    assert capsys.readouterr().out.count("metrics.jsonl cannot be written: [Errno 28]") == 1
    with pytest.raises(OSError, match="cannot be written"):
        journal.sync()  # no checkpoint stands before what led there does
    Disk.room = 1000
    journal.write(TRAIN, 4, 1.0)
    assert [line["samples_seen"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == "metrics.jsonl can be written again\n"
    Disk.room = 0
    journal.write(TRAIN, 5, 1.0)
    journal.close()
    assert "the last lines of metrics.jsonl are lost" in capsys.readouterr().out


def test_an_epochs_line_weighs_by_images_and_by_seconds(tmp_path):
    write_two_epochs(tmp_path).close()
    # loss (2*30 + 3*10) / 40, images/s 40 / 4, waiting 0.5*3 of 4 seconds
    expected = "| 2.00 | 2.2500 | 1.5000 | 75.00% | 100.00% | 0.1 | 10 | 38% |"
    assert expected in logs_markdown(tmp_path)


AVERAGED = {"ema_top1": 0.625, "ema_top5": 0.875, "ema_loss": 1.25}


def test_averaged_weights_have_columns_of_their_own_and_name_the_best(tmp_path):
    write_two_epochs(tmp_path, **AVERAGED).close()
    text = logs_markdown(tmp_path)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "| top-1 | top-5 | EMA top-1 | EMA top-5 | lr |" in text
    assert "| 75.00% | 100.00% | 62.50% | 87.50% | 0.1 |" in text
    assert "Best: 62.50% top-1 of averaged weights after epoch 1.00, on 8 images." in text


def test_without_averaged_weights_nothing_is_said_of_them(tmp_path):
    write_two_epochs(tmp_path).close()
    assert "EMA" not in logs_markdown(tmp_path)
    assert "Best: 75.00% top-1 after epoch 2.00, on 8 images." in logs_markdown(tmp_path)


@pytest.mark.parametrize("averaged", [{}, AVERAGED])
def test_plots_are_pictures_with_a_curve_for_each_series(tmp_path, averaged, monkeypatch):
    figures = {}

    def keep(figure, path):
        figures[path.stem] = figure
        save_figure(figure, path)

    monkeypatch.setattr(report, "save_figure", keep)
    write_two_epochs(tmp_path, **averaged).close()
    for path in report.draw_plots(tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    drawn = {
        (name, line.get_label()): list(line.get_ydata())
        for name, figure in figures.items()
        for line in figure.axes[0].lines
    }
    assert drawn["accuracy", "top-1"] == [0.5, 0.75]
    assert drawn["loss", "validation"] == [1.5, 1.5]
    assert drawn.get(("accuracy", "top-1, EMA"), []) == [0.625, 0.625] * bool(averaged)
    assert drawn.get(("accuracy", "top-5, EMA"), []) == [0.875, 0.875] * bool(averaged)
    assert drawn.get(("loss", "validation, EMA"), []) == [1.25, 1.25] * bool(averaged)


def write_training(run, *, waited, rate, **validation):
    journal = MetricsLogger(run, 0)
    line = {"loss": 1.0, "lr": 0.1, "num_images": round(rate * 100), "seconds": 100.0}
    journal.write(TRAIN, 8, 1.0, **line, data_wait=waited)
    counted = {"top1": 0.5, "top5": 1.0, "loss": 1.0, "num_images": 8}
    journal.write(VALIDATION, 8, 1.0, **counted | validation, is_best=True)
    journal.close()


def test_a_slow_run_has_a_speed(tmp_path):
    write_training(tmp_path, waited=0.001, rate=0.04)
    assert "| 0.04 | 0.1% |" in logs_markdown(tmp_path)


def test_utilisation_has_columns_of_its_own_weighted_by_seconds(tmp_path):
    journal = MetricsLogger(tmp_path, 0)
    counted = {"top1": 0.5, "top5": 1.0, "loss": 1.0, "num_images": 8, "is_best": True}
    line = {"loss": 1.0, "lr": 0.1, "num_images": 8, "data_wait": 0.0}
    journal.write(TRAIN, 8, 1.0, **line, seconds=1.0, tflops=10.0)  # a device of unknown peak
    journal.write(VALIDATION, 8, 1.0, **counted)
    journal.write(TRAIN, 16, 2.0, **line, seconds=1.0, tflops=20.0, mfu=0.2)
    journal.write(TRAIN, 24, 2.0, **line, seconds=3.0, tflops=40.0, mfu=0.4)
    journal.write(VALIDATION, 24, 2.0, **counted)
    journal.close()
    rows = [line for line in logs_markdown(tmp_path).splitlines() if line.startswith("|")]
    assert [row.split(" | ")[-2:] for row in rows if "---" not in row] == [
        ["TFLOP/s", "MFU |"],
        ["10", " |"],
        ["35", "35.0% |"],
    ]


@pytest.mark.parametrize(("top1", "shown"), [(49_999 / 50_000, "99.998%"), (1 / 50_000, "0.002%")])
def test_an_accuracy_is_not_rounded_to_all_or_nothing(tmp_path, top1, shown):
    write_training(tmp_path, waited=0, rate=1, top1=top1, num_images=50_000)
    text = logs_markdown(tmp_path)
    assert f"Best: {shown} top-1 after epoch 1.00, on 50,000 images." in text
    assert f"| {shown} | 100.00% |" in text


def test_averages_that_were_kept_for_a_part_of_a_run_are_told_of_that_part(tmp_path):
    journal = MetricsLogger(tmp_path, 0)
    counted = {"top1": 0.9, "top5": 1.0, "loss": 1.0, "num_images": 1, "is_best": True}
    journal.write(VALIDATION, 8, 1.0, **counted)
    journal.write(VALIDATION, 16, 2.0, **counted, ema_top1=0.8, ema_top5=0.9)
    journal.close()
    text = logs_markdown(tmp_path)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "Best: 90.00% top-1 after epoch 1.00, on 1 image." in text


def drawn_by(run, monkeypatch):
    """Returns the figures of a run's plots, by name."""
    figures = {}
    monkeypatch.setattr(
        report, "save_figure", lambda figure, path: figures.update({path.stem: figure})
    )
    report.draw_plots(run)
    return figures


def curve(figure, name):
    """Returns the points of the curve whose label begins with a name."""
    lines = [line for axes in figure.axes for line in axes.lines]
    (found,) = [line for line in lines if str(line.get_label()).startswith(name)]
    return list(zip(*found.get_data(), strict=True))


def test_the_learning_rate_is_drawn_from_the_schedule_with_its_cuts(tmp_path, monkeypatch):
    schedule = ScheduleRecipe(name="constant", warmup_epochs=1.0, plateau_patience=1)
    recipe = Recipe(epochs=8, schedule=schedule)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    write_training(tmp_path, waited=0, rate=1)
    logger = MetricsLogger(tmp_path, 100)
    for epoch in range(2, 7):  # the loss does not fall: cut after the third validation
        logger.write(VALIDATION, 8 * epoch, float(epoch), top1=0.5, top5=1.0, loss=1.0)
    logger.close()
    points = curve(drawn_by(tmp_path, monkeypatch)["learning_rate"], "schedule")
    assert len(points) > 4000
    epochs = [epoch for epoch, _ in points]
    assert (epochs[0], epochs[-1]) == (0, 8)
    cuts = list(plateau_cuts(recipe, [(float(e), 1.0) for e in range(1, 7)]))
    assert cuts
    for epoch, rate in points:
        expected = learning_rate(recipe, epoch, sum(cut <= epoch for cut in cuts))
        assert rate == pytest.approx(expected)


@pytest.mark.parametrize(("smoothing", "num_classes"), [(0.1, 10), (0.1, 1000), (0.0, 10)])
def test_the_training_loss_is_drawn_without_what_label_smoothing_adds(
    tmp_path, monkeypatch, smoothing, num_classes
):
    wnids = tuple(f"n{index:08d}" for index in range(num_classes))
    Classes(wnids, wnids).save(tmp_path)
    recipe = Recipe(label_smoothing=smoothing)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    write_training(tmp_path, waited=0, rate=1)
    targets = torch.full((num_classes,), smoothing / num_classes)
    targets[0] += 1 - smoothing
    least = functional.cross_entropy(targets.clamp_min(1e-30).log()[None], targets[None]).item()
    ((_, shown),) = curve(drawn_by(tmp_path, monkeypatch)["loss"], "training")
    assert shown == pytest.approx(1.0 - least, abs=1e-5)


def test_the_best_epoch_is_marked_and_every_axis_has_a_label(tmp_path, monkeypatch):
    write_two_epochs(tmp_path).close()
    figures = drawn_by(tmp_path, monkeypatch)
    for name in ("loss", "accuracy", "learning_rate"):
        assert {epoch for epoch, _ in curve(figures[name], "best: epoch 2.00, 75.00%")} == {2.0}
    for figure in figures.values():
        assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
