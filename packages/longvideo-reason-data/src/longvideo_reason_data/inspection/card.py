"""The card of a dataset: its contents, how it was made, its licences, and its limits.

Everything in it is computed from the records and the manifest, or stated to be unknown. Hugging Face reads the front
matter; it lists the files of each split, so that `datasets.load_dataset` finds them in a folder and on a hub.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.medium import MediumKind
from longvideo_reason_data.records.record import NUM_OPTIONS, QuestionRecord, Skill, Split

VIDEOS_LIST_NAME = "videos.jsonl"

_MOST_FILES_LISTED = 100
_SIZES = (1000, 10_000, 100_000, 1_000_000)


def list_sources(records: Sequence[QuestionRecord]) -> list[dict[str, Any]]:
    """List the media of a dataset with source and licence, each once."""
    counts = Counter(digest for record in records for digest in set(record.digests))
    last = {medium.digest: (medium, record) for record in records for medium in record.media}
    return [
        {
            "kind": str(medium.kind),
            "path": medium.path,
            "sha256": digest,
            "seconds": medium.duration_seconds,
            "split": str(record.split),
            "source": record.source,
            "license": record.license,
            "num_questions": counts[digest],
        }
        for digest, (medium, record) in last.items()
    ]


def write_card(
    name: str, records: Sequence[QuestionRecord], manifest: Mapping[str, Any], *, files: Mapping[str, str], layout: str
) -> str:
    """Write the card.

    Args:
        name: Name of the dataset.
        records: The dataset's questions.
        manifest: How it was made; empty if that isn't known.
        files: The file of each split.
        layout: Name of the layout of the files.

    Returns:
        Markdown with front matter.
    """
    media = list_sources(records)
    videos = [medium for medium in media if medium["kind"] == MediumKind.VIDEO]
    hours = sum(video["seconds"] for video in videos) / 3600
    pictures = f" and {len(media) - len(videos)} pictures" if len(videos) < len(media) else ""
    lines = [
        *_front_matter(name, records, files),
        "",
        f"# {_escape(name)}",
        "",
        f"{len(records)} questions about {len(videos)} videos ({hours:.2f} hours){pictures}, each with its answer, the "
        f"time ranges that hold the evidence, and reasoning. Layout: `{layout}`.",
        "",
        "## Questions",
        "",
        *_count_table(records),
        "",
        "## Sources and licences",
        "",
        f"`{VIDEOS_LIST_NAME}` says for every file where it is from and under which licence it is.",
        "",
        *_source_table(media),
        "",
        "## How it was made",
        "",
        *_describe_making(manifest),
        "",
        "## Known limits",
        "",
        *(f"- {limit}" for limit in _find_limits(records)),
        "",
    ]
    return "\n".join(lines)


def _front_matter(name: str, records: Sequence[QuestionRecord], files: Mapping[str, str]) -> list[str]:
    """Write the front matter; strings as JSON, which is YAML too."""
    licenses = sorted({record.license for record in records})
    single = (
        licenses[0].lower() if len(licenses) == 1 and licenses[0].lower().startswith(("cc", "apache", "mit")) else ""
    )
    size = next((place for place, limit in enumerate(_SIZES) if len(records) < limit), len(_SIZES))
    sizes = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "n>1M")
    lines = ["---", f"pretty_name: {json.dumps(name)}"]
    if single:
        lines.append(f"license: {json.dumps(single)}")
    else:
        lines += ["license: other", f"license_name: {json.dumps('; '.join(licenses))}"]
    lines += [
        "task_categories:",
        "- visual-question-answering",
        "- video-text-to-text",
        "tags:",
        "- video",
        "- long-video",
        "- reasoning",
        "size_categories:",
        f"- {json.dumps(sizes[size])}",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split, path in files.items():
        lines += [f"  - split: {split}", f"    path: {json.dumps(path)}"]
    return [*lines, "---"]


def _count_table(records: Sequence[QuestionRecord]) -> list[str]:
    counts = Counter((record.split, record.skill) for record in records)
    splits = [split for split in Split if any(counts[split, skill] for skill in Skill)]
    rows = [
        [
            str(skill),
            *(str(counts[split, skill]) for split in splits),
            str(sum(counts[split, skill] for split in splits)),
        ]
        for skill in Skill
    ]
    totals = [sum(counts[split, skill] for skill in Skill) for split in splits]
    rows.append(["all", *(str(total) for total in totals), str(len(records))])
    return _table(["skill", *(str(split) for split in splits), "all"], rows)


def _source_table(media: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(media) <= _MOST_FILES_LISTED:
        rows = [[str(medium["path"]), str(medium["source"]), str(medium["license"])] for medium in media]
        return _table(["file", "source", "licence"], rows)
    counts = Counter((str(medium["source"]), str(medium["license"])) for medium in media)
    rows = [[source, license_name, str(count)] for (source, license_name), count in sorted(counts.items())]
    return _table(["source", "licence", "files"], rows)


def _describe_making(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest:
        return ["The dataset has no manifest: how its questions came about isn't recorded here."]
    lines = ["Made with `longvideo-data`."]
    if models := manifest.get("models"):
        lines.append(
            "Models: " + ", ".join(f"{role} `{_escape(str(model))}`" for role, model in models.items() if model) + "."
        )
    rows = [
        [
            str(stage),
            str(counts.get("input", "")),
            str(counts.get("kept", "")),
            ", ".join(f"{reason} {number}" for reason, number in counts.get("dropped", {}).items()),
        ]
        for stage, counts in (*manifest.get("stages", {}).items(), ("filter", manifest.get("filter")))
        if counts
    ]
    if rows:
        lines += ["", *_table(["stage", "in", "kept", "dropped"], rows), ""]
    if settings := manifest.get("settings"):
        lines += [
            "<details><summary>Settings</summary>",
            "",
            "```json",
            json.dumps(settings, indent=2),
            "```",
            "</details>",
        ]
    return lines


def _find_limits(records: Sequence[QuestionRecord]) -> list[str]:
    """State what the records themselves show about their reliability."""
    num_measured = sum(bool(record.model_dump().get("pass_rates")) for record in records)
    num_open = sum(not record.options for record in records)
    num_ungrounded = sum(not record.evidence for record in records)
    letters = Counter(record.answer for record in records if record.options)
    limits = ["Questions, answers and reasoning weren't reviewed by people, unless a source says so."]
    if num_measured < len(records):
        limits.append(
            f"{len(records) - num_measured} of {len(records)} questions weren't tried on a model; whether they need "
            "the video isn't known for them."
        )
    if num_ungrounded:
        limits.append(f"{num_ungrounded} questions have no evidence interval.")
    if num_open:
        limits.append(f"{num_open} questions are open-ended; comparing answers to them takes judgement.")
    if letters:
        shown = ", ".join(f"{letter} {letters[letter]}" for letter in LETTERS[:NUM_OPTIONS])
        limits.append(f"Right letters: {shown}.")
    if unknown := sum(record.license == "unknown" for record in records):
        limits.append(f"The licence of the video is unknown for {unknown} questions.")
    return limits


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines]


def _escape(text: str) -> str:
    """Escape text so that it isn't read as Markdown, HTML or another cell."""
    flat = " ".join(text.split())
    for sign in ("\\", "|", "<", "`"):
        flat = flat.replace(sign, "&lt;" if sign == "<" else "\\" + sign)
    return flat
