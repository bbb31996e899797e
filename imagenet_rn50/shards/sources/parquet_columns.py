"""Which columns of a parquet file are the images and the labels, and what the classes are called.

Columns are found by type: `datasets` records its features, `Image` and `ClassLabel`, in the schema;
files of other writers have structs or bytes, and dictionaries or a column named `label`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE, LABEL = "image", "label"  # preferred where several columns fit
_MAX_SHOWN = 5


class ColumnOptions(NamedTuple):
    """Options that select the columns: `--image-column`, `--label-column` and `--label-names`.

    Args:
        image: The column of images; None to find it by its type.
        label: The column of labels; None to find it by its type.
        names: File with the name of each label, a line each from label 0; None for the names that
            the parquet files have.
    """

    image: str | None = None
    label: str | None = None
    names: Path | None = None


ANY_COLUMNS = ColumnOptions()


class Columns(NamedTuple):
    """The columns of a file that are read.

    Args:
        image: The column of the images.
        label: The column of the labels.
        bytes_path: Where the bytes of an image are, as parquet names it: `image.bytes`.
        name_path: Where its file name is; None where there is none.
        class_names: The name of each label; None where labels are names or bare numbers.
        others: The other columns.
    """

    image: str
    label: str
    bytes_path: str
    name_path: str | None
    class_names: tuple[str, ...] | None
    others: tuple[str, ...]

    def bytes_of(self, value: Any) -> bytes:
        """Return the bytes of an image from a value of its column; none where it is null."""
        if isinstance(value, dict):
            value = value.get("bytes")
        return value or b""


def find_columns(schema: pa.Schema, where: str, options: ColumnOptions) -> Columns:
    """Find the columns of images and labels.

    Args:
        schema: Of the file.
        where: The file, for messages.
        options: Options that select the columns.

    Raises:
        InputError: When none fits, several do, or the named one does not; or the labels have other
            names than the user gives them.
    """
    features = _features(schema, where)
    image = _choose(_image_columns(schema, features), options.image, IMAGE, schema, where)
    labels = _label_columns(schema, features, options.label)
    label = _choose(labels, options.label, LABEL, schema, where)
    fields = _fields_of(schema.field(image).type)
    return Columns(
        image=image,
        label=label,
        bytes_path=f"{image}.bytes" if fields else image,
        name_path=f"{image}.path" if "path" in fields else None,
        class_names=_names_of(label, _class_names(features.get(label)), options.names, where),
        others=tuple(name for name in schema.names if name not in {image, label}),
    )


def _features(schema: pa.Schema, where: str) -> dict[str, Any]:
    """Return the features that `datasets` recorded in the schema, or infers from its types."""
    from datasets import Features

    try:
        return dict(Features.from_arrow_schema(schema))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"the features in the schema of {where} cannot be read", found=str(error)
        ) from None


def _names_of(
    label: str, recorded: tuple[str, ...] | None, path: Path | None, where: str
) -> tuple[str, ...] | None:
    """Return the names of the labels, from the parquet file or the user's file.

    Raises:
        InputError: When both give names, and they differ.
    """
    if path is None:
        return recorded
    names = read_names(path)
    if recorded not in {None, names}:
        raise InputError(
            f"{path} names other classes than {label} of {where}",
            expected=_shortened(recorded or ()),
            found=_shortened(names),
            fix="leave --label-names out",
        )
    return names


def read_names(path: Path) -> tuple[str, ...]:
    """Read the name of each label, a line each.

    Raises:
        InputError: When a line is empty, or a name repeats.
    """
    names = tuple(line.strip() for line in read_text(path).splitlines())
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            raise InputError(
                f"line {number + 1} of {path} {f'repeats {name!r}' if name else 'is empty'}",
                expected="the name of a class per line, from label 0, each once",
            )
    return names


def _shortened(names: Sequence[str]) -> str:
    return f"{len(names)} classes: {', '.join(names[:_MAX_SHOWN])}"


def _class_names(feature: Any) -> tuple[str, ...] | None:
    from datasets import ClassLabel

    is_named = isinstance(feature, ClassLabel) and feature.names
    return tuple(map(str, feature.names)) if is_named else None


def _image_columns(schema: pa.Schema, features: dict[str, Any]) -> list[str]:
    """Return the columns that may be images: declared ones, else structs, else plain bytes."""
    from datasets import Image

    usable = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    declared = [name for name in usable if isinstance(features.get(name), Image)]
    structs = [name for name in usable if _fields_of(schema.field(name).type)]
    return declared or structs or usable


def _label_columns(schema: pa.Schema, features: dict[str, Any], chosen: str | None) -> list[str]:
    """Return the columns that may be labels.

    A bare number or text may be anything, so such a column counts only by its name.
    """
    from pyarrow import types

    found = []
    for name in schema.names:
        kind = schema.field(name).type
        is_bare = types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)
        is_text = types.is_dictionary(kind) and types.is_string(kind.value_type)
        is_named = _class_names(features.get(name)) is not None and types.is_integer(kind)
        if is_named or is_text or (is_bare and name in {chosen, LABEL}):
            found.append(name)
    return found


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a type holds the bytes of an image."""
    from pyarrow import types

    inner = _fields_of(kind).get("bytes", kind)
    return any(
        is_kind(inner) for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view)
    )


def _fields_of(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Return the types of the fields of a struct that has `bytes`; empty for any other type."""
    from pyarrow import types

    if not types.is_struct(kind):
        return {}
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    return fields if "bytes" in fields else {}


def _choose(
    fitting: Sequence[str], chosen: str | None, preferred: str, schema: pa.Schema, where: str
) -> str:
    """Return the column to read.

    Raises:
        InputError: When none fits, several do, or the named one does not.
    """
    option = f"--{preferred}-column"
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if chosen is not None:
        if chosen not in fitting:
            raise InputError(
                f"{option} {chosen} is no column of {preferred}s in {where}",
                expected=f"one of {', '.join(fitting)}" if fitting else _EXPECTED[preferred],
                found=columns,
            )
        return chosen
    if preferred in fitting or len(fitting) == 1:
        return preferred if preferred in fitting else fitting[0]
    if fitting:
        raise InputError(
            f"{where} has {len(fitting)} columns of {preferred}s",
            expected="one, or to be told which",
            found=", ".join(fitting),
            fix=" or ".join(f"{option} {name}" for name in fitting),
        )
    raise InputError(
        f"{where} has other columns",
        expected=_EXPECTED[preferred],
        found=columns,
        fix=f"if it is one of these, name it: {option} NAME",
    )


_EXPECTED = {
    IMAGE: "a column of images: an Image of datasets, a struct with bytes, or bytes",
    LABEL: "a column of labels: a ClassLabel of datasets, or integers or texts in a column `label`",
}
