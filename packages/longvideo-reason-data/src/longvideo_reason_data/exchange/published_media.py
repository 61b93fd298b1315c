"""The media of published questions: the media of a question, their order, and their files.

Media are shown in the order of the `<video>` and `<image>` placeholders before or after the text; without these, videos
come first.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.generation.sources import file_name, probe_source
from longvideo_reason_data.media.image_file import ImageFile
from longvideo_reason_data.records.folder import IMAGES_NAME
from longvideo_reason_data.records.medium import MediumKind, RecordMedium

_PLACE = re.compile(r"<(video|image)>")
_PLACES_IN_FRONT = re.compile(r"(?:\s*<(?:video|image)>)+\s*")
_PLACES_BEHIND = re.compile(r"(?:\s*<(?:video|image)>)+\s*$")


class UnusableError(Exception):
    """A question that can't become a record.

    Args:
        reason: The reason, as one word that can be counted.
        detail: What exactly is wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class MediaFolder:
    """The videos and images of a published file; each is opened once.

    Args:
        folder: Their folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.found: dict[tuple[MediumKind, Path], RecordMedium | DataError] = {}

    def find(self, kind: MediumKind, name: str) -> RecordMedium:
        """Find a medium by the path in a question.

        Raises:
            UnusableError: When the path leads outside, or there is no readable file of this kind.
        """
        try:
            path = (self._folder / name).resolve()
            is_file = path.is_file()
        except (OSError, ValueError, RuntimeError) as error:
            raise UnusableError(f"{kind}_missing", f"{name!r} isn't a path ({error})") from error
        if not path.is_relative_to(self._folder):
            raise UnusableError(f"{kind}_outside", f"{name!r} leads outside the folder of videos")
        if not is_file:
            raise UnusableError(f"{kind}_missing", f"{name!r} isn't in the folder of videos")
        if (kind, path) not in self.found:
            try:
                self.found[kind, path] = _probe(kind, path)
            except DataError as error:
                self.found[kind, path] = error
        medium = self.found[kind, path]
        if isinstance(medium, DataError):
            raise UnusableError(f"{kind}_unreadable", f"{name!r}: {medium}")
        return medium


def _probe(kind: MediumKind, path: Path) -> RecordMedium:
    """Probe a file, and determine its path in the dataset."""
    if kind is MediumKind.IMAGE:
        digest = ImageFile.open(path).content_digest
        return RecordMedium(kind=kind, path=f"{IMAGES_NAME}/{file_name(path, digest)}", digest=digest)
    source = probe_source(path, BuildSettings())
    return RecordMedium(path=source.dataset_path, digest=source.digest, duration_seconds=source.duration_seconds)


def named_media(
    item: Mapping[str, Any], layout: Literal["longvideo-reason", "video-r1"]
) -> dict[MediumKind, list[str]]:
    """Find the paths of each kind of medium that a published question names.

    Raises:
        UnusableError: When it names none, or something invalid.
    """
    kind = item.get("data_type", "video")
    if kind not in set(MediumKind):
        raise UnusableError("not_a_video", f"its data_type is {kind!r}")
    if layout == "video-r1":
        name, named = "path", {MediumKind(kind): _paths(item, "path")}
    else:
        name, named = "videos", {MediumKind.VIDEO: _paths(item, "videos"), MediumKind.IMAGE: _paths(item, "images")}
    if not any(named.values()):
        raise UnusableError("field_missing", f"{name!r} is {str(item.get(name))[:60]!r}, expected paths")
    return named


def _paths(item: Mapping[str, Any], name: str) -> list[str]:
    value = item.get(name)
    values = cast(list[object], value) if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(path, str) and path.strip() for path in values):
        raise UnusableError("field_missing", f"{name!r} is {str(value)[:60]!r}, expected paths")
    return [str(path).strip() for path in values]


def take_places(words: str) -> tuple[list[MediumKind], str, list[MediumKind]]:
    """Split off the placeholders at both ends: those before the text, the text, and those after it."""
    front = _PLACES_IN_FRONT.match(words)
    words = words[front.end() :] if front else words
    behind = _PLACES_BEHIND.search(words)
    words = words[: behind.start()] if behind else words
    kinds = [[MediumKind(name) for name in _PLACE.findall(found[0])] if found else [] for found in (front, behind)]
    return kinds[0], words.strip(), kinds[1]


def order_media(
    places: Sequence[MediumKind], named: Mapping[MediumKind, Sequence[str]]
) -> tuple[tuple[MediumKind, str], ...]:
    """Order media by their placeholders; without placeholders, or for a single medium, keep the given order.

    Raises:
        UnusableError: When the numbers of placeholders and media differ.
    """
    in_given_order = tuple((kind, path) for kind, paths in named.items() for path in paths)
    if not places or (len(in_given_order) == 1 and len(places) == 1):
        return in_given_order
    if any(places.count(kind) != len(named.get(kind, ())) for kind in MediumKind):
        given = ", ".join(f"{len(paths)} {kind}s" for kind, paths in named.items())
        raise UnusableError("media_unclear", f"{len(places)} placeholders in its text for {given}")
    paths = {kind: iter(of_kind) for kind, of_kind in named.items()}
    return tuple((kind, next(paths[kind])) for kind in places)
