"""Which files hold the subtitles of a video.

A subtitle file has the name of its video, `film.mp4`: `film.srt`, `film.mp4.srt`, `film.en.srt`, `film.en.forced.srt`,
`film.zh-Hans-en.vtt`, with an extension in any case. Of several, the first is used, by these rules: a folder given by
the user before the video's own; complete subtitles before `forced` ones, which translate signs and foreign speech only;
no language before a language; plain subtitles before those for the deaf; then the language in alphabetical order, and
the extension in the order below. JSON as in LongVideoBench (`film_en.json`) is only used in a folder given by the user,
because next to videos JSON is usually something else.
"""

import re
from pathlib import Path

from longvideo_reason_data.media.containers import VIDEO_SUFFIXES

_SUFFIXES = (".srt", ".vtt", ".ass", ".ssa", ".json")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")
_FOR_THE_DEAF = frozenset({"sdh", "cc", "hi"})
_FLAGS = frozenset({"forced", "default", "auto", "orig"}) | _FOR_THE_DEAF

_Rank = tuple[bool, bool, bool, tuple[str, ...], int, str]


def find_subtitle_files(video: Path, folder: Path | None = None) -> list[Path]:
    """List the subtitle files of a video; the first one is used.

    Args:
        video: The video.
        folder: Another folder where they may be.
    """
    named = [] if folder is None else _in_folder(video, folder, with_json=True)
    return named + [path for path in _in_folder(video, video.parent, with_json=False) if path not in named]


def _in_folder(video: Path, folder: Path, *, with_json: bool) -> list[Path]:
    ranked: list[tuple[_Rank, Path]] = []
    try:
        names = sorted(folder.iterdir())
    except OSError:
        return []
    for path in names:
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES or (suffix == ".json" and not with_json) or not path.stem.startswith(video.stem):
            continue
        rank = _rank(path, video, suffix)
        if rank is not None and path.is_file():
            ranked.append((rank, path))
    return [path for _, path in sorted(ranked)]


def _rank(path: Path, video: Path, suffix: str) -> _Rank | None:
    """Return a file's rank among those of a video; None if it belongs to another one."""
    rest = path.stem[len(video.stem) :]
    if rest and any(video.with_name(path.stem + other).is_file() for other in VIDEO_SUFFIXES):
        return None
    rest = rest.removeprefix(video.suffix)
    if suffix == ".json" and rest.startswith("_"):
        rest = "." + rest[1:]
    tags = rest.split(".")[1:]
    if rest and (not rest.startswith(".") or not all(_is_tag(tag) for tag in tags)):
        return None
    flags = {tag.lower() for tag in tags} & _FLAGS
    languages = tuple(tag.lower() for tag in tags if tag.lower() not in _FLAGS)
    return (
        "forced" in flags,
        bool(languages),
        bool(flags & _FOR_THE_DEAF),
        languages,
        _SUFFIXES.index(suffix),
        path.name,
    )


def _is_tag(tag: str) -> bool:
    return tag.lower() in _FLAGS or bool(_LANGUAGE.fullmatch(tag))
