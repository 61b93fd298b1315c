"""A question of each type, for tests of the rewards."""

import hashlib

from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split


def ask(answer: str, answer_type: QuestionType | None = None, *, question: str = "What is it?") -> QuestionRecord:
    """A question without options."""
    return QuestionRecord(
        question_id="q",
        media=(RecordMedium(path="v.mp4", digest=hashlib.sha256(b"v").hexdigest(), duration_seconds=60.0),),
        split=Split.TRAIN_RL,
        skill=Skill.GOAL,
        question=question,
        options=(),
        answer=answer,
        answer_type=answer_type,
        evidence=(),
        reasoning="It is.",
        source="test",
        license="Apache-2.0",
    )


def respond(answer: str) -> str:
    """A well-formed response."""
    return f"<think>I look.</think><answer>{answer}</answer>"
