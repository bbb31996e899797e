"""The model card: every number comes from metrics.jsonl (contract 8)."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from imagenet_rn50.classes import Classes
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_json
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.checkpoints import Checkpoint
from imagenet_rn50.runs.metrics import VALIDATION, read_metrics

_BODY = """\
# {name}

A `ResNetForImageClassification` that tells {num_classes} classes apart, trained on `{dataset}`
with imagenet_rn50 and the recipe below.

| data | top-1 | top-5 | images | after epoch |
|---|---:|---:|---:|---:|
| {dataset}, validation | {top1:.2%} | {top5:.2%} | {num_images} | {epoch:.2f} of {epochs} |

From the `validation` line with `samples_seen` {samples_seen} of the run's `metrics.jsonl`.

## Use

```python
from transformers import pipeline

classify = pipeline("image-classification", model="{name}")  # a folder or a Hub id
print(classify("picture.jpg", top_k=5))
```

## Recipe

```yaml
{recipe}```
"""


def model_card(run: Path, checkpoint: Checkpoint, recipe: Recipe, classes: Classes) -> str:
    """Returns the README.md of an exported model.

    Args:
        run: The run folder.
        checkpoint: What is exported.
        recipe: The run's recipe.
        classes: The classes that the model tells apart.

    Raises:
        InputError: When metrics.jsonl has no validation of that checkpoint.
    """
    validations = {r["samples_seen"]: r for r in read_metrics(run, VALIDATION)}
    if checkpoint.samples_seen not in validations:
        raise InputError(
            f"{run} has no validation of the checkpoint {checkpoint.folder.name}",
            expected=f'a line with "samples_seen": {checkpoint.samples_seen} in metrics.jsonl',
            found=f"validations after {sorted(validations)} samples",
        )
    measured = validations[checkpoint.samples_seen]
    dataset = read_json(run / "shards.json")["dataset"]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=name,
            metric_value=measured[key],
        )
        for name, key in (("top-1", "top1"), ("top-5", "top5"))
    ]
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["resnet", "image-classification"],
        model_name=run.name,
        eval_results=results,
    )
    body = _BODY.format(
        name=run.name,
        num_classes=len(classes),
        dataset=dataset,
        epochs=recipe.epochs,
        recipe=recipe.to_yaml(),
        **{key: measured[key] for key in ("top1", "top5", "num_images", "epoch", "samples_seen")},
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"
