"""What goes to the Hub, laid out as it will stand there.

The card names the model's Hub id in its snippet; the Space has the model in its metadata, and a
model.json that pins it to the model's commit.

Push: an exported model, and the Space that shows it, to the Hub through huggingface_hub.

What goes up is laid out in a folder of its own first (staging), and compared with what stands there
afterwards. Each repository gets one commit, and a push that broke off is taken up by the same
command: what the Hub has already is not sent again.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import HfApi, SpaceCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from imagenet_rn50.publishing.layout import (
    CARD,
    CONFIG,
    PLOTS,
    PROCESSOR,
    REPLACED,
    TRANSFORMERS_WEIGHTS,
    WEIGHTS,
)
from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.publishing.snippets import FROM_HERE, HERE
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.logging import logger

APP = Path(__file__).parents[2] / "app"
PINNED = "model.json"
"""In the Space: which model it shows, and the commit of it."""

_LEFT_OUT = ("__pycache__", ".")  # how names begin that stay here


def stage_model(folder: Path, hub_id: str, stage: Path) -> None:
    """Lays out what goes into the model's repository.

    Args:
        folder: Exported folder.
        hub_id: What its card calls it instead of "this folder".
        stage: New folder; large files are linked.
    """
    _link(folder, stage)
    card = (folder / CARD).read_text(encoding="utf-8")
    card = card.replace(FROM_HERE, "").replace(HERE, f'model="{hub_id}"')
    (stage / CARD).unlink()
    (stage / CARD).write_text(card, encoding="utf-8")


def stage_space(app: Path, hub_id: str, revision: str, stage: Path) -> None:
    """Lays out what goes into the Space's repository.

    Args:
        app: Folder of the Space.
        hub_id: The model that it shows.
        revision: The commit of it, 40 hexadecimal digits.
        stage: Folder; what stands there is replaced.

    Raises:
        InputError: If there is no such app.
    """
    if not (app / "app.py").is_file():
        raise InputError(
            f"there is no Space in {app}",
            expected="app.py, README.md, requirements.txt",
            fix="push from a checkout of the repository",
        )
    shutil.rmtree(stage, ignore_errors=True)
    _link(app, stage)
    card = SpaceCard((app / CARD).read_text(encoding="utf-8"))
    card.data["models"] = [hub_id]
    (stage / CARD).unlink()
    (stage / CARD).write_text(str(card), encoding="utf-8")
    pinned = {"model_id": hub_id, "revision": revision}
    (stage / PINNED).write_text(json.dumps(pinned, indent=2) + "\n", encoding="utf-8")


def _link(source: Path, stage: Path) -> None:
    """Puts links to all files of a folder into another one, hidden files left out."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and not any(part.startswith(_LEFT_OUT) for part in name.parts):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).symlink_to(path.resolve())


_TOKEN = re.compile(r"[\x21-\x7e]+")  # whatever else a header cannot carry is quoted in errors
_CHUNK_BYTES = 2**22  # read at a time of files in which a token could have been left
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_NO_COMMIT = "0" * 40


@dataclass(frozen=True)
class Target:
    """Where to push, and what.

    Attributes:
        model: Hub id of the model.
        space: Hub id of the Space, or None for none.
        private: Whether repositories that are created are private.
        app: Folder of the Space.
    """

    model: str
    space: str | None = None
    private: bool = False
    app: Path = APP


def push(folder: Path, target: Target, *, dry_run: bool = False) -> None:
    """Push an exported model, and the Space that shows it.

    Args:
        folder: Exported folder.
        target: Where to.
        dry_run: Only list what would go up; neither token nor network is needed.

    Raises:
        InputError: If the folder is no exported model, an id is none, there is no token or a
            wrong one, or the Hub cannot be reached or refuses.
    """
    for hub_id in filter(None, (target.model, target.space)):
        _require_id(hub_id)
    _require_exported(folder, for_space=target.space is not None)
    for problem in unsourced_numbers(folder):
        logger.info(f"mind the card: {problem}")
    with tempfile.TemporaryDirectory(prefix="push-") as temporary:
        model, space = Path(temporary, "model"), Path(temporary, "space")
        stage_model(folder, target.model, model)
        _list(model, target.model, private=target.private)
        if target.space:
            stage_space(target.app, target.model, _NO_COMMIT, space)
            _list(space, f"spaces/{target.space}", private=target.private)
        if dry_run:
            logger.info("nothing was sent: --dry-run")
            return
        token = _token()
        _require_no_token(Path(temporary), token)
        with _hub_answers(target, token):
            api = HfApi(token=token)
            logger.info(f"pushing as {api.whoami()['name']}")
            revision = _upload(api, model, target.model, "model", private=target.private)
            if target.space:
                stage_space(target.app, target.model, revision, space)
                _upload(api, space, target.space, "space", private=target.private)
    if target.space and target.private:
        logger.info(
            "a private model is shown by a Space that has a secret HF_TOKEN which may read it"
        )


def _list(stage: Path, repository: str, *, private: bool) -> None:
    """Says which files go where, and how large they are."""
    files = [path for path in sorted(stage.rglob("*")) if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    kind = ", private where it is new" if private else ""
    logger.info(f"{repository}{kind}: {len(files)} files, {_size(sum(sizes))}")
    for path, size in zip(files, sizes, strict=True):
        logger.info(f"  {_size(size):>9}  {path.relative_to(stage).as_posix()}")


def _size(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def _upload(api: HfApi, stage: Path, hub_id: str, kind: str, *, private: bool) -> str:
    """Creates a repository where there is none, and commits a folder to it.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        InputError: If what stands there afterwards is not what was sent.
    """
    sdk = "gradio" if kind == "space" else None
    visibility = True if private else None  # None leaves it to the account's setting
    api.create_repo(hub_id, repo_type=kind, private=visibility, space_sdk=sdk, exist_ok=True)
    done = api.upload_folder(
        repo_id=hub_id,
        repo_type=kind,
        folder_path=stage,
        commit_message="Push from imagenet_rn50",
        # Weights of another format, or figures of another model, shall not stand beside this card.
        delete_patterns=[*REPLACED, f"{PLOTS}/*"] if kind == "model" else None,
    )
    revision = done.oid
    checked = api.verify_repo_checksums(hub_id, repo_type=kind, revision=revision, local_dir=stage)
    if checked.mismatches or checked.extra_paths:
        wrong = [mismatch["path"] for mismatch in checked.mismatches] + checked.extra_paths
        raise InputError(f"{hub_id} is not what was sent", found=", ".join(wrong), fix="push again")
    prefix = "spaces/" if kind == "space" else ""
    logger.info(
        f"{checked.checked_count} files stand in {api.endpoint}/{prefix}{hub_id}/tree/{revision}, "
        "byte for byte"
    )
    return revision


def _token() -> str:
    """Return the token of the person who pushes.

    Raises:
        InputError: If there is none, or it cannot be one.
    """
    token = get_token()
    if token is None:
        raise InputError(
            "there is no token of the Hub",
            expected="one that may write, from https://huggingface.co/settings/tokens",
            fix="hf auth login, or set HF_TOKEN",
        )
    if not _TOKEN.fullmatch(token):
        raise InputError("the token of the Hub holds characters that no token has")
    return token


def _require_id(hub_id: str) -> None:
    """Raises `InputError` unless a text is user/name."""
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        found = str(error)
    else:
        if "/" in hub_id:
            return
        found = hub_id
    raise InputError(f"{hub_id!r} is no id on the Hub", expected="user/name", found=found)


def _require_exported(folder: Path, *, for_space: bool) -> None:
    """Raises `InputError` unless a folder holds all of an exported model that can be shown."""
    missing = [name for name in (CONFIG, PROCESSOR, CARD) if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in WEIGHTS):
        missing.append(" or ".join(WEIGHTS))
    if missing:
        raise InputError(
            f"{folder} is not an exported model",
            expected=f"{CONFIG}, {PROCESSOR}, {CARD} and weights",
            found=f"no {', no '.join(missing)}" if folder.is_dir() else "no such folder",
            fix="python -m imagenet_rn50 export --run RUN --out DIR",
        )
    if for_space and not (folder / TRANSFORMERS_WEIGHTS).is_file():
        raise InputError(
            "the Space shows models that transformers loads",
            expected=f"{folder / TRANSFORMERS_WEIGHTS}",
            fix="leave --space out, or export with --format transformers",
        )


def _require_no_token(stage: Path, token: str) -> None:
    """Raises `InputError` when a file that would go up holds the token."""
    for path in stage.rglob("*"):
        if path.is_file() and path.name not in WEIGHTS and _holds(path, token.encode()):
            raise InputError(
                f"{path.relative_to(stage)} holds the token of the Hub: nothing was sent",
                fix="remove it from there, and make a new token: this one was written down",
            )


def _holds(path: Path, token: bytes) -> bool:
    """Return whether a file holds a token, wherever it stands."""
    with path.open("rb") as file:
        end = b""  # what a token that goes on in the next chunk could begin in
        while chunk := file.read(_CHUNK_BYTES):
            if token in end + chunk:
                return True
            end = (end + chunk)[-len(token) :]
    return False


@contextmanager
def _hub_answers(target: Target, token: str) -> Iterator[None]:
    """Turns whatever goes wrong with the Hub into one message, which never shows the token.

    Raises:
        InputError: With what the Hub, or the network, said.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of the client, its HTTP library or the system: many, unlisted
        raise _as_input_error(error, target, token) from None


def _as_input_error(error: Exception, target: Target, token: str) -> InputError:
    """Says what went wrong, and what to do about it."""
    # What the client wraps says more than its wrapping, but for its own words on an answer.
    speaks = isinstance(error, (HfHubHTTPError, ValueError)) or not error.__cause__
    inner = error if speaks else error.__cause__
    lines = [line for line in str(inner).splitlines() if line.strip()]
    said = " ".join(lines[:2] or [type(inner).__name__]).replace(token, "***")
    status = inner.response.status_code if isinstance(inner, HfHubHTTPError) else None
    if status == HTTPStatus.UNAUTHORIZED:
        return InputError(
            "the Hub does not accept the token",
            found=said,
            fix="hf auth login, or set HF_TOKEN to one from https://huggingface.co/settings/tokens",
        )
    if status == HTTPStatus.FORBIDDEN:
        where = " and ".join(filter(None, (target.model, target.space)))
        return InputError(
            f"the token may not write to {where}",
            expected="a token with write access there",
            found=said,
        )
    is_refused = status is not None and 400 <= status < 500 and status not in _PASSING
    is_damaged = isinstance(inner, (JSONDecodeError, UnicodeError))  # an answer, of ValueError's
    if is_refused or (isinstance(inner, ValueError) and not is_damaged):
        return InputError("the Hub refuses what would be sent", found=said)
    return InputError(
        "the push broke off",
        found=said,
        fix="run the same command again: what the Hub has already is not sent again",
    )
