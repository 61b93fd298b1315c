"""What kinds of questions there are: by the skill that they test, and by how an answer is compared with the right one.

Independent of how answers are found in a response (`longvideo_reason_data.records.answers`) and of how they are scored.
"""

from enum import StrEnum


class Skill(StrEnum):
    """The skill that a question tests."""

    TEMPORAL = "temporal"
    GOAL = "goal"
    SPATIAL = "spatial"
    PLOT = "plot"


class QuestionType(StrEnum):
    """The kind of answer that a question has."""

    CHOICE = "choice"
    """The letter of an option."""
    OPEN = "open"
    """Free text, compared by its meaning."""
    NUMERIC = "numeric"
    """A number that is right or wrong, such as a count."""
    REGRESSION = "regression"
    """A number that is the better the closer it is, such as a distance."""
    OCR = "ocr"
    """Text that is read off, compared word by word."""
    GROUNDING = "grounding"
    """Time ranges of the video."""
    MATHEMATICS = "mathematics"
    """An expression, which may be written in several ways."""
