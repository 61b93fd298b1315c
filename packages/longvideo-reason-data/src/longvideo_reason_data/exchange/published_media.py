"""The media of published questions: what a question names, in which order, and where the files lie.

Media are shown in the order of the `<video>` and `<image>` that stand before or behind the words; without these, videos
come first. Media among the words can't be shown there, so such a question isn't taken.
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
_PLACES_AT_ENDS = re.compile(r"^(?:\s*<(?:video|image)>)+\s*|(?:\s*<(?:video|image)>)+\s*$")


class UnusableError(Exception):
    """A question that can't become a record.

    Args:
        reason: Why, in one word that can be counted.
        detail: What exactly is wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class MediaFolder:
    """The videos and pictures that came with a file; each is opened once.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.found: dict[tuple[MediumKind, Path], RecordMedium | DataError] = {}

    def find(self, kind: MediumKind, name: str) -> RecordMedium:
        """Find a medium by the path that a question gives.

        Raises:
            UnusableError: When the path leads outside, or there is no readable file of this kind.
        """
        try:
            path = (self._folder / name).resolve()
            is_file = path.is_file()
        except (OSError, ValueError, RuntimeError) as error:
            raise UnusableError(f"{kind}_missing", f"{name!r} is no path ({error})") from error
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
    """Find out what a file is, and name its place in the dataset."""
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
        UnusableError: When it names none, or something else.
    """
    kind = item.get("data_type", "video")
    if kind not in set(MediumKind):
        raise UnusableError("not_a_video", f"its data_type is {kind!r}")
    if layout == "video-r1":
        return {MediumKind(kind): _paths(item, "path")}
    named = {MediumKind.VIDEO: _paths(item, "videos"), MediumKind.IMAGE: _paths(item, "images")}
    if not any(named.values()):
        raise UnusableError("field_missing", f"'videos' is {str(item.get('videos'))[:60]!r}, expected paths")
    return named


def _paths(item: Mapping[str, Any], name: str) -> list[str]:
    value = item.get(name)
    values = cast(list[object], value) if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(path, str) and path.strip() for path in values):
        raise UnusableError("field_missing", f"{name!r} is {str(value)[:60]!r}, expected paths")
    return [str(path).strip() for path in values]


def place_media(
    question: str, named: Mapping[MediumKind, Sequence[str]]
) -> tuple[str, tuple[tuple[MediumKind, str], ...]]:
    """Bring media into the order in which the question has them, and take their places out of its words.

    Raises:
        UnusableError: When the places aren't as many as the media, or don't stand in front of the words or behind them.
    """
    places = [MediumKind(name) for name in _PLACE.findall(question)]
    if not places:
        return question, tuple((kind, path) for kind, paths in named.items() for path in paths)
    words = _PLACES_AT_ENDS.sub("", question)
    if _PLACE.search(words):
        raise UnusableError("media_among_words", "its media stand among its words, expected before or behind them")
    if any(places.count(kind) != len(named.get(kind, ())) for kind in MediumKind):
        given = ", ".join(f"{len(paths)} {kind}s" for kind, paths in named.items())
        raise UnusableError("media_unclear", f"{len(places)} places of media in its words for {given}")
    paths = {kind: iter(of_kind) for kind, of_kind in named.items()}
    return words, tuple((kind, next(paths[kind])) for kind in places)
