"""The packing that a run's shards came from, as a command, by what shards.json says of it."""

from __future__ import annotations

import shlex
from typing import Any

from imagenet_rn50.errors import InputError
from imagenet_rn50.publishing.evidence import TRAINED_ON, Evidence, Place
from imagenet_rn50.publishing.layout import SHARDS
from imagenet_rn50.shards.options import PackOptions

_DEFAULTS = PackOptions(restart_blocks="auto").as_dict()
"""Of the command; `auto` is what it makes of jpegtran's being installed."""
_NEXT = " \\\n    "  # a command goes on in the next line


def packing_command(evidence: Evidence) -> str:
    """Returns the command that makes such shards, or the manifest of shards that others packed."""
    dataset, *words = packing_words(evidence)
    if _options(evidence).get("indexed"):
        return f"python shard_imagenet.py index --shards SHARDS {dataset}"
    command = f"python shard_imagenet.py pack --source SOURCE --out SHARDS {dataset}"
    return command + (_NEXT + " ".join(words) if words else "")


def packing_words(evidence: Evidence) -> list[str]:
    """Returns the options that differ from pack's own, each with its value; the data set first."""
    options = _options(evidence)
    changed = {
        name: options[name]
        for name, default in _DEFAULTS.items()
        if name != "dataset" and name in options and options[name] != default
    }
    return [f"--dataset {shlex.quote(str(evidence.value(TRAINED_ON)))}"] + [
        _word(name, value) for name, value in changed.items()
    ]


def packing_remark(evidence: Evidence) -> str:
    """Returns what else is to be known before packing, to end a sentence with; maybe nothing."""
    options = _options(evidence)
    if not options:
        return ".\nWith which options they were packed is not recorded"
    if options.get("indexed"):
        return ".\nOthers packed them, and SHARDS holds their files"
    layout = f".\nSOURCE is laid out as `{options['layout']}`" if "layout" in options else ""
    return layout + (", and packing needs `jpegtran`" if options.get("restart_blocks") else "")


def _word(name: str, value: Any) -> str:
    """Returns an option as the command takes it."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return flag
    return f"{flag} {'none' if value is None else shlex.quote(str(value))}"


def _options(evidence: Evidence) -> dict[str, Any]:
    """Returns the manifest's options; none where the run was begun before they were recorded."""
    try:
        options = evidence.value(Place(SHARDS, "options"))
    except InputError:
        return {}
    return options if isinstance(options, dict) else {}
