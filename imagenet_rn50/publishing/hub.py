"""Push an exported model, and optionally Spaces for it, to the Hugging Face Hub.

The Spaces are app/, which runs on a server, and the page of `web.py`, which runs on the visitor's
machine. The files of each repository are first staged in a temporary folder: the card's snippets
and the results in `.eval_results/` get the model's Hub id; a Space gets the model in its metadata,
and a model.json that names its commit. After the upload, hashes are compared. Each repository gets
one commit. Running the same command again resumes an interrupted push: files that the Hub has are
not uploaded again.
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

from imagenet_rn50.publishing.eval_results import add_source
from imagenet_rn50.publishing.layout import (
    CARD,
    CONFIG,
    EVAL_RESULTS,
    EXAMPLES,
    ONNX_FOLDER,
    PLOTS,
    PROCESSOR,
    REPLACED,
    TRANSFORMERS_WEIGHTS,
    WEIGHTS,
)
from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.publishing.snippets import CITED_NOTE, FROM_HERE, HERE
from imagenet_rn50.publishing.web import download_runtime, stage_web_space
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.logging import logger

APP = Path(__file__).parents[2] / "app"
PINNED = "model.json"
"""File in the Space with the id and commit of its model."""

_SKIPPED_PREFIXES = ("__pycache__", ".")  # of names that are not uploaded


def stage_model(folder: Path, hub_id: str, stage: Path) -> None:
    """Stage the files of the model's repository.

    Args:
        folder: Exported folder.
        hub_id: The Hub id that replaces "this folder" in the card and the results.
        stage: A new folder; files are linked.
    """
    _link(folder, stage)
    card = (folder / CARD).read_text(encoding="utf-8")
    card = card.replace(FROM_HERE, "")
    for here in HERE:
        card = card.replace(here, here.replace('"."', f'"{hub_id}"'))
    url = f"  url = {{https://huggingface.co/{hub_id}}},\n"
    card = card.replace(CITED_NOTE, url + CITED_NOTE)
    (stage / CARD).unlink()
    (stage / CARD).write_text(card, encoding="utf-8")
    if (folder / EVAL_RESULTS).is_file():
        (stage / EVAL_RESULTS).unlink()
        shutil.copyfile(folder / EVAL_RESULTS, stage / EVAL_RESULTS)
        add_source(stage / EVAL_RESULTS, hub_id)


def stage_space(app: Path, hub_id: str, revision: str, stage: Path) -> None:
    """Stage the files of the Space's repository.

    Args:
        app: Folder of the Space.
        hub_id: Hub id of the model.
        revision: Commit of the model, 40 hexadecimal digits.
        stage: A folder; its content is replaced.

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
    """Link all files of a folder into another one, except hidden files other than results."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        is_hidden = any(part.startswith(_SKIPPED_PREFIXES) for part in name.parts)
        if path.is_file() and (not is_hidden or name.as_posix() == EVAL_RESULTS):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).symlink_to(path.resolve())


_TOKEN = re.compile(
    r"[\x21-\x7e]+"
)  # errors would quote any other character, which headers cannot contain
_CHUNK_BYTES = 2**22  # read at once when searching files for the token
_TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_NO_COMMIT = "0" * 40


@dataclass(frozen=True)
class Target:
    """The repositories to push to.

    Attributes:
        model: Hub id of the model.
        space: Hub id of the Space; None pushes no Space.
        web_space: Hub id of the static Space, which classifies on the visitor's machine; None
            pushes none.
        private: Whether new repositories are private.
        app: Folder of the Space.
    """

    model: str
    space: str | None = None
    web_space: str | None = None
    private: bool = False
    app: Path = APP


def push(folder: Path, target: Target, *, dry_run: bool = False) -> None:
    """Push an exported model, and its Spaces if the target names any.

    Args:
        folder: Exported folder.
        target: The repositories.
        dry_run: Only list the files; needs neither token nor network.

    Raises:
        InputError: If the folder is not an exported model, an id or the token is invalid, or the
            Hub cannot be reached or refuses.
    """
    for hub_id in filter(None, (target.model, target.space, target.web_space)):
        _require_id(hub_id)
    _require_exported(folder, for_space=target.space is not None)
    for problem in unsourced_numbers(folder):
        logger.info(f"warning: card: {problem}")
    with tempfile.TemporaryDirectory(prefix="push-") as temporary:
        model, space, web = (Path(temporary, name) for name in ("model", "space", "web"))
        stage_model(folder, target.model, model)
        _list(model, target.model, private=target.private)
        if target.space:
            stage_space(target.app, target.model, _NO_COMMIT, space)
            _list(space, f"spaces/{target.space}", private=target.private)
        if target.web_space:
            runtime = None if dry_run else download_runtime()
            stage_web_space(folder, web, runtime=runtime, hub_id=target.model)
            _list(web, f"spaces/{target.web_space}", private=target.private)
            if dry_run:
                logger.info("  and ONNX Runtime Web in ort/, downloaded from npm for the push")
        if dry_run:
            logger.info("dry run: nothing was uploaded")
            return
        token = _token()
        _require_no_token(Path(temporary), token)
        with _hub_errors_as_input_errors(target, token):
            api = HfApi(token=token)
            logger.info(f"pushing as {api.whoami()['name']}")
            revision = _upload(api, model, target.model, private=target.private)
            if target.space:
                stage_space(target.app, target.model, revision, space)
                _upload(api, space, target.space, "gradio", private=target.private)
            if target.web_space:
                stage_web_space(
                    folder, web, runtime=runtime, hub_id=target.model, revision=revision
                )
                _upload(api, web, target.web_space, "static", private=target.private)
    if target.space and target.private:
        logger.info(
            "set the secret HF_TOKEN of the Space to a token that can read the private model"
        )


def _list(stage: Path, repository: str, *, private: bool) -> None:
    """Log the files of a repository with their sizes."""
    files = [path for path in sorted(stage.rglob("*")) if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    kind = ", private if new" if private else ""
    logger.info(f"{repository}{kind}: {len(files)} files, {_size(sum(sizes))}")
    for path, size in zip(files, sizes, strict=True):
        logger.info(f"  {_size(size):>9}  {path.relative_to(stage).as_posix()}")


def _size(num_bytes: int) -> str:
    """Return a size in MB or kB."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def _upload(api: HfApi, stage: Path, hub_id: str, sdk: str | None = None, *, private: bool) -> str:
    """Create a repository unless it exists, and commit a folder to it.

    Args:
        api: The Hub.
        stage: The folder.
        hub_id: Id of the repository.
        sdk: SDK of a Space; None for a model.
        private: Whether a new repository is private.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        InputError: If the hashes on the Hub differ afterwards.
    """
    kind = "space" if sdk else "model"
    visibility = True if private else None  # None: the account's default
    api.create_repo(hub_id, repo_type=kind, private=visibility, space_sdk=sdk, exist_ok=True)
    done = api.upload_folder(
        repo_id=hub_id,
        repo_type=kind,
        folder_path=stage,
        commit_message="Push from imagenet_rn50",
        delete_patterns=_stale(stage, sdk),
    )
    revision = done.oid
    checked = api.verify_repo_checksums(hub_id, repo_type=kind, revision=revision, local_dir=stage)
    if checked.mismatches or checked.extra_paths:
        wrong = [mismatch["path"] for mismatch in checked.mismatches] + checked.extra_paths
        raise InputError(
            f"the files of {hub_id} differ from those uploaded",
            found=", ".join(wrong),
            fix="push again",
        )
    prefix = "spaces/" if kind == "space" else ""
    logger.info(
        f"uploaded and verified {checked.checked_count} files: "
        f"{api.endpoint}/{prefix}{hub_id}/tree/{revision}"
    )
    return revision


def _stale(stage: Path, sdk: str | None) -> list[str] | None:
    """Return patterns of files that earlier pushes may have left, and this one may lack.

    Examples of a model are replaced by new ones, if there are any: they may have been added on the
    Hub.

    Args:
        stage: The folder to upload.
        sdk: That of the Space; None for a model.
    """
    if sdk == "gradio":
        return None
    if sdk == "static":
        return [f"{ONNX_FOLDER}/*", f"{EXAMPLES}/*", "ort/*"]
    examples = [f"{EXAMPLES}/*"] if (stage / EXAMPLES).is_dir() else []
    return [*REPLACED, f"{PLOTS}/*", *examples]


def _token() -> str:
    """Return the user's token.

    Raises:
        InputError: If there is none, or it has invalid characters.
    """
    token = get_token()
    if token is None:
        raise InputError(
            "no Hub token is set",
            expected="one with write access, from https://huggingface.co/settings/tokens",
            fix="hf auth login, or set HF_TOKEN",
        )
    if not _TOKEN.fullmatch(token):
        raise InputError("the Hub token has invalid characters")
    return token


def _require_id(hub_id: str) -> None:
    """Raise `InputError` unless `hub_id` is user/name."""
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        found = str(error)
    else:
        if "/" in hub_id:
            return
        found = hub_id
    raise InputError(f"{hub_id!r} is not a Hub id", expected="user/name", found=found)


def _require_exported(folder: Path, *, for_space: bool) -> None:
    """Raise `InputError` unless a folder is an exported model, for transformers if for a Space."""
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
            "the Space needs an export for transformers",
            expected=f"{folder / TRANSFORMERS_WEIGHTS}",
            fix="omit --space, or export with --format transformers",
        )


def _require_no_token(stage: Path, token: str) -> None:
    """Raise `InputError` if a file to upload holds the token."""
    for path in stage.rglob("*"):
        is_weights = path.suffix in {".safetensors", ".onnx"}
        if path.is_file() and not is_weights and _holds(path, token.encode()):
            raise InputError(
                f"{path.relative_to(stage)} holds the Hub token: nothing was uploaded",
                fix="remove it, and replace the token, which may have leaked",
            )


def _holds(path: Path, token: bytes) -> bool:
    """Return whether a file contains a token."""
    with path.open("rb") as file:
        end = b""  # may hold the start of a token that continues in the next chunk
        while chunk := file.read(_CHUNK_BYTES):
            if token in end + chunk:
                return True
            end = (end + chunk)[-len(token) :]
    return False


@contextmanager
def _hub_errors_as_input_errors(target: Target, token: str) -> Iterator[None]:
    """Convert errors of the Hub into one message without the token.

    Raises:
        InputError: With the message of the Hub or the network.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # client, HTTP library and system raise many types
        raise _as_input_error(error, target, token) from None


def _as_input_error(error: Exception, target: Target, token: str) -> InputError:
    """Return the message for an error of the Hub or the network."""
    # The wrapped error says more, unless the client describes an answer of the Hub.
    is_answer = isinstance(error, (HfHubHTTPError, ValueError)) or not error.__cause__
    inner = error if is_answer else error.__cause__
    lines = [line for line in str(inner).splitlines() if line.strip()]
    found = " ".join(lines[:2] or [type(inner).__name__]).replace(token, "***")
    status = inner.response.status_code if isinstance(inner, HfHubHTTPError) else None
    if status == HTTPStatus.UNAUTHORIZED:
        return InputError(
            "the Hub does not accept the token",
            found=found,
            fix="hf auth login, or set HF_TOKEN to one from https://huggingface.co/settings/tokens",
        )
    if status == HTTPStatus.FORBIDDEN:
        where = " and ".join(filter(None, (target.model, target.space, target.web_space)))
        return InputError(
            f"the token has no write access to {where}",
            expected="a token with write access",
            found=found,
        )
    is_refused = status is not None and 400 <= status < 500 and status not in _TRANSIENT
    is_damaged = isinstance(
        inner, (JSONDecodeError, UnicodeError)
    )  # subclasses of ValueError that mean a damaged answer
    if is_refused or (isinstance(inner, ValueError) and not is_damaged):
        return InputError("the Hub refuses the upload", found=found)
    return InputError(
        "the push was interrupted",
        found=found,
        fix="run the same command again to resume",
    )
