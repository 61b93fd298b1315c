"""JSON files in the folder of a quickstart, which may come from somebody else: read whole, and of the expected kind."""

from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from longrl.errors import AppUsageError
from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_trainer.durable import LINK_CURE

KindT = TypeVar("KindT")


def find_object(folder: Path, name: str) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file.

    Raises:
        AppUsageError: It is no file or no JSON object.
    """
    files = ForeignFolder(folder, error=AppUsageError, link_cure=LINK_CURE)
    if not files.has(name):
        return None
    values = files.read_json(name)
    if not isinstance(values, dict):
        raise AppUsageError(f"{folder / name}: expected a JSON object; run the quickstart again")
    return cast(dict[str, Any], values)


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object that must be there.

    Raises:
        AppUsageError: As from `find_object`; or there is none.
    """
    values = find_object(folder, name)
    if values is None:
        raise AppUsageError(f"{folder / name}: no such file; run the quickstart again")
    return values


def find_kind(kind: type[KindT], folder: Path, name: str) -> KindT | None:
    """Read a file that says what a dataclass holds; None if there is no such file.

    Raises:
        AppUsageError: As from `find_object`; or it says something else.
    """
    values = find_object(folder, name)
    try:
        return None if values is None else TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = visible(".".join(map(str, first["loc"])), 60)
        raise AppUsageError(
            f"{folder / name}: {place}: {visible(first['msg'])}; it was written by something else, remove it"
        ) from error
