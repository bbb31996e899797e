import pytest

from imagenet_rn50.errors import InputError
from imagenet_rn50.runs.metrics import TRAIN, VALIDATION, Journal, read_metrics
from imagenet_rn50.runs.report import draw_plots, logs_markdown


def write_two_epochs(run):
    journal = Journal(run, 0)
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
        values = {"top1": top1, "top5": 1.0, "loss": 1.5, "num_images": 8}
        journal.write(VALIDATION, epoch * 40, float(epoch), **values)
    return journal


def test_going_on_forgets_the_steps_that_will_be_run_again(tmp_path):
    write_two_epochs(tmp_path).close()
    Journal(tmp_path, 40).close()
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
    with pytest.raises(InputError, match="broken line"):
        read_metrics(tmp_path)


def test_the_best_is_the_best_before_and_after_a_restart(tmp_path):
    journal = write_two_epochs(tmp_path)
    assert journal.best_score() == 0.75
    journal.close()
    journal = Journal(tmp_path, 40)
    assert journal.best_score() == 0.5
    journal.close()


def test_an_epochs_line_weighs_by_images_and_by_seconds(tmp_path):
    write_two_epochs(tmp_path).close()
    # loss (2*30 + 3*10) / 40, images/s 40 / 4, waiting 0.5*3 of 4 seconds
    expected = "| 2.00 | 2.2500 | 1.5000 | 75.00% | 100.00% | 0.1 | 10 | 38% |"
    assert expected in logs_markdown(tmp_path)


def test_plots_are_pictures(tmp_path):
    write_two_epochs(tmp_path).close()
    for path in draw_plots(tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
