"""Records about one video, made of the fields that most tests are about."""

from typing import Any

from longvideo_reason_data.records.record import QuestionRecord

_NAMES = ("path", "digest", "duration_seconds")


def make_record(fields: dict[str, Any]) -> QuestionRecord:
    """Make a record of fields among which `video_path`, `video_digest` and `video_duration_seconds` are its video."""
    medium = {name: fields[f"video_{name}"] for name in _NAMES}
    rest = {name: value for name, value in fields.items() if not name.startswith("video_")}
    return QuestionRecord.model_validate({**rest, "media": (medium,)})
