"""What kinds of questions there are: by skill, by the senses that they need, and by how answers are compared.

Independent of how answers are found in a response (`longvideo_reason_data.records.answers`) and of how they are scored.
"""

from enum import StrEnum


class Skill(StrEnum):
    """The skill that a question tests."""

    TEMPORAL = "temporal"
    GOAL = "goal"
    SPATIAL = "spatial"
    PLOT = "plot"


class Senses(StrEnum):
    """What of a film a question is about."""

    PICTURE = "picture"
    """It can be answered without its sound."""
    SOUND = "sound"
    """It can be answered without its pictures."""
    BOTH = "both"
    """Neither is enough."""


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
