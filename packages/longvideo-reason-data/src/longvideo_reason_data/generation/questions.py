"""From the descriptions of a video to questions with evidence and reasoning, with four options or open-ended.

The reasoner must follow a JSON schema where the server supports one; in any case the JSON object is extracted from its
answer and checked here. What fails in every sample is dropped with its reason. The filters decide whether a question is
good.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from longvideo_reason_data.generation.captions import Caption
from longvideo_reason_data.generation.settings import QuestionSettings
from longvideo_reason_data.language_model.requests import Asks, Outcome, Request
from longvideo_reason_data.language_model.resampling import LostQuestion, ask_for_use
from longvideo_reason_data.language_model.structured_output import extract_json
from longvideo_reason_data.prompts.templates import Prompts
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.drafts import QuestionProposal
from longvideo_reason_data.records.record import NUM_OPTIONS, Skill

_SECONDS = {"type": "number", "minimum": 0}
_TEXT = {"type": "string", "minLength": 1}


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def answer_schema(*, open_ended: bool) -> dict[str, Any]:
    """Write the JSON schema of a proposal. The answer comes last, so that the reasoning leads to it."""
    properties: dict[str, Any] = {
        "question": _TEXT,
        "evidence": {
            "type": "array",
            "minItems": 1,
            "items": _object(start_seconds=_SECONDS, end_seconds=_SECONDS),
        },
        "reasoning": {
            "type": "array",
            "minItems": 1,
            "items": _object(start_seconds=_SECONDS, end_seconds=_SECONDS, thought=_TEXT),
        },
    }
    if open_ended:
        return _object(**properties, answer=_TEXT)
    options = {"type": "array", "items": _TEXT, "minItems": NUM_OPTIONS, "maxItems": NUM_OPTIONS}
    letter = {"type": "string", "enum": list(LETTERS[:NUM_OPTIONS])}
    return _object(**properties, options=options, answer=letter)


async def propose_question(
    language_model: Asks,
    captions: Sequence[Caption],
    *,
    duration_seconds: float,
    skill: Skill,
    number: int,
    earlier: Sequence[str],
    open_ended: bool,
    model: str,
    prompts: Prompts,
    settings: QuestionSettings,
) -> QuestionProposal | LostQuestion:
    """Request one question.

    Args:
        language_model: Whom to ask.
        captions: Descriptions of the video's segments in order.
        duration_seconds: Length of the video.
        skill: The skill that the question should test.
        number: Number of the question within this skill, from 1.
        earlier: Existing questions of this skill.
        open_ended: Whether it has no options.
        model: Name of the reasoner.
        prompts: The prompts, of which `question`, the skill's, and `choice` or `open` are used.
        settings: Number of samples and limits on length.

    Raises:
        DataError: When the server can't be used at all.
    """
    form = "open" if open_ended else "choice"
    text = prompts.fill(
        "question",
        captions="\n".join(
            f"[{c.segment.start_seconds:.1f} s to {c.segment.end_seconds:.1f} s] {c.text}" for c in captions
        ),
        duration_seconds=f"{duration_seconds:.1f}",
        skill=prompts.texts[skill.value],
        number=number,
        earlier="\n".join(f"  - {question}" for question in earlier) or "  (none yet)",
        form=prompts.texts[form],
    )
    request = Request(
        model=model,
        parts=(text,),
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        schema=answer_schema(open_ended=open_ended),
        prompt_digest=prompts.digest_of("question", skill.value, form),
    )

    def read(answer: str) -> QuestionProposal | LostQuestion:
        try:
            proposal = QuestionProposal.model_validate(extract_json(answer))
            if bool(proposal.options) is open_ended:
                raise ValueError(f"{len(proposal.options)} options in answer to {form}.md")
        except (ValueError, ValidationError) as error:
            return LostQuestion.at("question", Outcome.INVALID, str(error))
        return proposal

    return await ask_for_use(language_model, request, read, stage="question", num_samples=settings.num_samples)
