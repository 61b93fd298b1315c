"""From a dataset's split to questions with encoded media: the start of every stage.

Each file is opened once per frame plan, by one rank, and checked against the digest in its records; its frames are
encoded by all ranks together, unless the embedding store holds them. A question with an unusable medium is dropped with
a reason that names the file; it is never replaced. Kept and dropped questions together are always all questions of the
split.
"""

from collections.abc import Sequence

from longrl_trainer.config.sections import DataSection, SamplerSection, records_path
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.questions.encoding import encode_questions
from longrl_trainer.questions.frames import resolve_frames
from longrl_trainer.questions.length import LengthLimit, PromptLengths, ResponseTokens
from longrl_trainer.questions.question import DroppedQuestion, DropReason, Question, QuestionSet
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.training.ranks import ALONE, Ranks
from longvideo_reason_data.records.answers import format_prompt, format_response, parse_response
from longvideo_reason_data.records.record import QuestionRecord, Split, read_records
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.families.base import Policy


def load_questions(
    data: DataSection,
    policy: Policy,
    *,
    progress: ProgressDisplay,
    blind: bool = False,
    choice_only: bool = False,
    learn_responses: bool = False,
    limit: int | None = None,
    response_tokens: ResponseTokens = lambda _: 0,
    sampler: SamplerSection | None = None,
    ranks: Ranks = ALONE,
) -> QuestionSet:
    """Read a split and encode its media.

    Args:
        data: Which questions and how many frames.
        policy: Encodes what its store lacks.
        progress: Shows one bar for the videos.
        blind: Don't open the media; every question has none.
        choice_only: Drop questions without options.
        learn_responses: Drop questions whose reasoning and answer don't form a well-formed response.
        limit: Take at most this many questions, spread evenly over the split.
        response_tokens: Maximum tokens of the response to a question; prompt and response must fit the model together.
        sampler: What generates the responses, if anything; they must fit its memory too.
        ranks: Processes that share the work; all call this together and get the same result.

    Raises:
        TrainerUsageError: The split is empty, or no question is short enough.
        TrainerError: None of its questions can be used.
    """
    data = resolve_frames(data, policy.folder)
    records = [record for record in read_records(records_path(data)) if record.split == Split(data.split)]
    if not records:
        raise TrainerUsageError(
            f"{data.dataset} has no questions in the split {data.split!r}; set another `data.split`"
        )
    if limit is not None and limit < len(records):
        records = [records[index * len(records) // limit] for index in range(limit)]
    control_tokens = tuple(str(token) for token in policy.tokenizer.added_tokens_decoder.values() if token.special)
    candidates: list[QuestionRecord] = []
    dropped: list[DroppedQuestion] = []
    for record in records:
        problem = _find_problem(record, control_tokens, choice_only=choice_only, learn_responses=learn_responses)
        if problem is None:
            candidates.append(record)
        else:
            dropped.append(DroppedQuestion(question_id=record.question_id, reason=problem[0], detail=problem[1]))
    lengths = PromptLengths(policy, data, LengthLimit.of(policy, sampler), response_tokens)
    if blind:
        kept, unusable = _ask_blind(candidates, lengths)
        plans: dict[str, EncodingPlan] = {}
    else:
        kept, unusable, plans = encode_questions(data, policy, candidates, lengths, progress, ranks)
    dropped += unusable
    num_too_long = sum(question.reason == DropReason.PROMPT_TOO_LONG for question in dropped)
    if num_too_long:
        line = lengths.describe_refused(num_too_long, len(records))
        if not kept:
            raise TrainerUsageError(f"{data.dataset}: {line}")
        progress.say(f"{line}; they are dropped")
    if not kept:
        raise TrainerError(
            f"none of the {len(records)} questions of {data.dataset} can be used; the first: "
            f"{dropped[0].question_id}: {dropped[0].detail}"
        )
    return QuestionSet(kept=tuple(kept), dropped=tuple(dropped), plans=plans, longest_prompt=lengths.longest_prompt)


def _ask_blind(
    records: Sequence[QuestionRecord], lengths: PromptLengths
) -> tuple[list[Question], list[DroppedQuestion]]:
    """Questions without media, and those that are still too long."""
    kept: list[Question] = []
    dropped: list[DroppedQuestion] = []
    for record in records:
        problem = lengths.find_problem(record, ())
        if problem is None:
            kept.append(Question(record=record, media=()))
        else:
            dropped.append(
                DroppedQuestion(question_id=record.question_id, reason=problem.reason, detail=problem.detail)
            )
    return kept, dropped


def _find_problem(
    record: QuestionRecord, control_tokens: Sequence[str], *, choice_only: bool, learn_responses: bool
) -> tuple[DropReason, str] | None:
    """Return what makes the texts of a record unusable for a stage, if anything does."""
    if choice_only and not record.options:
        return DropReason.OPEN_ENDED, "it has no options"
    response = format_response(record.reasoning, record.answer) if learn_responses else ""
    text = format_prompt(record.question, record.options) + response
    found = next((token for token in control_tokens if token in text), None)
    if found is not None:
        return DropReason.CONTROL_TOKEN, f"its text contains {found!r}, a control token of the model"
    if learn_responses and not parse_response(response, record.options).well_formed:
        return DropReason.MALFORMED_RESPONSE, "its reasoning is empty, or contains a tag of the answer grammar"
    return None
