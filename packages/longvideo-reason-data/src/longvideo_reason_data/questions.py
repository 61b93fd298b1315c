"""From the descriptions of a video to questions with four options, evidence and reasoning.

The reasoner is held to a JSON schema where the server supports one; in any case its answer is searched for the JSON
object and checked here. An answer that breaks the form is asked for again as another sample, a truncated one with more
room; what still fails is left out with its reason. Whether a question is any good is for the filters to say.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from longvideo_reason_data.build_settings import QuestionSettings
from longvideo_reason_data.captions import Caption
from longvideo_reason_data.language_model import LanguageModel
from longvideo_reason_data.model_requests import Outcome, Request
from longvideo_reason_data.prompt_files import Prompts
from longvideo_reason_data.records import Interval, Skill

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class QuestionDraft(BaseModel):
    """What the reasoner wrote."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    reasoning: Text
    question: Text
    options: Annotated[tuple[Text, ...], Field(min_length=4, max_length=4)]
    answer: Literal["A", "B", "C", "D"]
    evidence: Annotated[tuple[Interval, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostQuestion:
    """A question that wasn't had, and why."""

    outcome: Outcome
    detail: str


_SECONDS = {"type": "number", "minimum": 0}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["reasoning", "question", "options", "answer", "evidence"],
    "properties": {
        "reasoning": {"type": "string"},
        "question": {"type": "string"},
        "options": {"type": "array", "items": {"type": "string"}, "minItems": 4, "maxItems": 4},
        "answer": {"type": "string", "enum": ["A", "B", "C", "D"]},
        "evidence": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["start_seconds", "end_seconds"],
                "properties": {"start_seconds": _SECONDS, "end_seconds": _SECONDS},
            },
        },
    },
}


async def draft_question(
    language_model: LanguageModel,
    captions: Sequence[Caption],
    *,
    duration_seconds: float,
    skill: Skill,
    number: int,
    model: str,
    prompts: Prompts,
    settings: QuestionSettings,
) -> QuestionDraft | LostQuestion:
    """Ask for one question.

    Args:
        language_model: The server to ask.
        captions: Descriptions of the video's segments in order.
        duration_seconds: Length of the video.
        skill: What the question should ask of the viewer.
        number: Which question of this skill it is, from 1.
        model: Name of the reasoner.
        prompts: The prompts, of which `question` and the skill's are used.
        settings: How often and how long.

    Raises:
        DataError: When the server is of no use at all.
    """
    text = prompts.fill(
        "question",
        captions="\n".join(
            f"[{c.segment.start_seconds:.1f} s to {c.segment.end_seconds:.1f} s] {c.text}" for c in captions
        ),
        duration_seconds=f"{duration_seconds:.1f}",
        skill=prompts.texts[skill.value],
        number=number,
    )
    lost = LostQuestion(outcome=Outcome.INVALID, detail="")
    max_tokens = settings.max_tokens
    for sample_index in range(settings.num_samples):
        request = Request(
            model=model,
            parts=(text,),
            max_tokens=max_tokens,
            temperature=settings.temperature,
            schema=SCHEMA,
            sample_index=sample_index,
            prompt_digest=prompts.digest_of("question", skill.value),
        )
        reply = await language_model.ask(request)
        if reply.outcome is Outcome.ANSWERED:
            try:
                return QuestionDraft.model_validate(extract_json(reply.text))
            except (ValueError, ValidationError) as error:
                lost = LostQuestion(outcome=Outcome.INVALID, detail=" ".join(str(error).split())[:200])
                continue
        lost = LostQuestion(outcome=reply.outcome, detail=reply.text[:200])
        if reply.outcome is Outcome.TRUNCATED:
            max_tokens *= 2
        elif reply.outcome in (Outcome.RATE_LIMITED, Outcome.TIMEOUT, Outcome.SERVER_ERROR):
            break  # the client has already tried again as often as that can help
    return lost


def extract_json(text: str) -> dict[str, Any]:
    """Find the JSON object in an answer, also behind reasoning, inside a code fence, or among other words.

    Returns:
        The largest object that can be read.

    Raises:
        ValueError: When there is none.
    """
    visible = text.rpartition("</think>")[2]
    decoder = json.JSONDecoder()
    found: list[tuple[int, dict[str, Any]]] = []
    start = visible.find("{")
    num_tried = 0
    while start >= 0 and num_tried < 200:  # an answer of nothing but braces must not cost quadratic time
        num_tried += 1
        try:
            value, end = decoder.raw_decode(visible, start)
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        else:
            if isinstance(value, dict):
                found.append((end - start, value))
        start = visible.find("{", end)
    if not found:
        raise ValueError("the answer holds no JSON object")
    return max(found, key=lambda item: item[0])[1]
