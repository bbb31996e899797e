"""What a card says without a place that bears it out is found."""

import pytest

from imagenet_rn50.publishing.export import export
from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.utils.errors import InputError

PLANTED = {
    "a number in a sentence": (
        "## Limits and bias\n",
        "## Limits and bias\n\nIt is 78.9% right.\n",
    ),
    "a bare count": ("with imagenet_rn50.", "with imagenet_rn50 on 8 GPUs."),
    "a unit that clings to it": ("with imagenet_rn50.", "with imagenet_rn50 in 16h."),
    "a decimal without zero": ("with imagenet_rn50.", "with imagenet_rn50, error .25 at most."),
    "a comment in code": ("```python\n", "```python\n# reaches 80% top-1\n"),
    "code in a line": ("with imagenet_rn50.", "with imagenet_rn50 (`top1 = 0.8`)."),
    "another digit": ("76.54%<!--metrics.json results.2", "76.64%<!--metrics.json results.2"),
    "rounded up": ("76.54%<!--metrics.json results.2", "76.6%<!--metrics.json results.2"),
    "another line": ("<!--metrics.jsonl:3 ema_top1-->", "<!--metrics.jsonl:2 ema_top1-->"),
    "another field": ("<!--metrics.jsonl:3 ema_top1-->", "<!--metrics.jsonl:3 top1-->"),
    "no such line": ("<!--metrics.jsonl:3 ema_top1-->", "<!--metrics.jsonl:99 ema_top1-->"),
    "no such file": ("<!--metrics.jsonl:3 ema_top1-->", "<!--notes.txt:3 ema_top1-->"),
    "no mark": ("<!--metrics.jsonl:3 ema_top1-->", ""),
    "a source that nobody sees": (" | metrics.jsonl line 3, shards", " | our logs, shards"),
    "the title in a sentence": ("with imagenet_rn50.", "with imagenet_rn50: 50."),
    "a percentage that clings to a word": ("with imagenet_rn50.", "with imagenet_rn50, top80%."),
    "a decimal that clings to a word": ("with imagenet_rn50.", "with imagenet_rn50, acc0.8."),
    "another data set": ("imagenet1k<!--metrics.json", "imagenet<!--metrics.json"),
    "another published figure": ("80.858%<!--published", "81.858%<!--published"),
    "another recipe": ("epochs: 2\n", "epochs: 3\n"),
    "another figure in the metadata": ("value: 0.76541\n", "value: 0.86541\n"),
    "another source in the metadata": ("field: results.2.top1\n", "field: results.1.top1\n"),
    "no source in the metadata": ("        field: results.2.top1\n", ""),
    "a number in a tag": ("- vision\n", "- vision\n- top1 0.81\n"),
    "another size of the model": (
        "<!--model_stats.json gmacs-->",
        "1<!--model_stats.json gmacs-->",
    ),
    "another citation": ("year = {2016}", "year = {2017}"),
    "another device": ("cuda (NVIDIA L4)", "cuda (NVIDIA H100)"),
    "hidden in a comment": ("with imagenet_rn50.", "with imagenet_rn50. <!-- 80% -->"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_number_is_found(card, what):
    before, after = PLANTED[what]
    text = card.read_text(encoding="utf-8")
    assert before in text
    card.write_text(text.replace(before, after, 1), encoding="utf-8")
    assert unsourced_numbers(card.parent) != []


def test_names_and_links_are_no_numbers(card):
    text = card.read_text(encoding="utf-8")
    names = "See [the paper](https://arxiv.org/abs/1512.03385): ResNet-50 on ImageNet-1k, top-1.\n"
    card.write_text(text.replace("## Limits and bias\n", f"## Limits and bias\n\n{names}", 1))
    assert unsourced_numbers(card.parent) == []


def test_what_cannot_be_traced_is_not_exported(run, tmp_path, monkeypatch):
    monkeypatch.setattr("imagenet_rn50.publishing.model_card.LIMITS", "Wrong in 1 of 5 cases.")
    with pytest.raises(RuntimeError, match=r"1 has no source.*5 has no source"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [b"---\n\n---\n", b"---\n- a list\n---\n", b"---\na: [\n---\n", b"---\nmodel-index: a\n---\n"]
    + [b"\xff\xfe", b"no metadata"],
)
def test_a_card_that_is_none_is_named(card, content):
    card.write_bytes(content)
    with pytest.raises(InputError, match=r"README\.md"):
        unsourced_numbers(card.parent)
