"""Records about one video, created from the fields that most tests use."""

from typing import Any

from longvideo_reason_data.records.record import QuestionRecord

_NAMES = ("path", "digest", "duration_seconds")


def make_record(fields: dict[str, Any]) -> QuestionRecord:
    """Create a record from fields, of which `video_path`, `video_digest` and `video_duration_seconds` are its video."""
    medium = {name: fields[f"video_{name}"] for name in _NAMES}
    rest = {name: value for name, value in fields.items() if not name.startswith("video_")}
    return QuestionRecord.model_validate({**rest, "media": (medium,)})
