"""From a dataset's split to questions with encoded media: the start of every stage.

Training takes its questions step by step (`open_feed`); evaluation loads all of them before the first is asked. Each
file is opened by one rank and checked against the digest in its records; its frames are encoded by all ranks together,
unless the embedding store holds them. A question with an unusable medium is dropped with a reason that names the file;
it is never replaced. Kept and dropped questions together are always all questions of the split.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from longrl_trainer.config.sections import DataSection, SamplerSection
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.questions.candidates import ALL_TYPES, Candidates, TextRules, describe_none_left, iter_split
from longrl_trainer.questions.drops import RecordedDrops
from longrl_trainer.questions.encoding import encode_questions
from longrl_trainer.questions.feed import FeedSettings, QuestionFeed
from longrl_trainer.questions.frames import resolve_frames
from longrl_trainer.questions.length import LengthLimit, PromptLengths, ResponseTokens
from longrl_trainer.questions.order import QuestionOrder
from longrl_trainer.questions.question import DroppedQuestion, DropReason, Question, QuestionSet
from longrl_trainer.runs.folder import Run
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.runs.seen_videos import note_seen_videos
from longrl_trainer.training.ranks import ALONE, Ranks
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.families.base import Policy


def open_feed(
    settings: FeedSettings,
    policy: Policy,
    run: Run,
    *,
    order: Callable[[Candidates], QuestionOrder],
    progress: ProgressDisplay,
    judged_types: frozenset[QuestionType] = ALL_TYPES,
    learn_responses: bool = False,
    response_tokens: ResponseTokens = lambda _: 0,
    sampler: SamplerSection | None = None,
    ranks: Ranks = ALONE,
) -> QuestionFeed:
    """Read a split's records and begin to prepare the media of its first steps.

    Args:
        settings: Which questions, and how far ahead their media are prepared.
        policy: Encodes what its store lacks.
        run: The run, new or going on.
        order: Returns the order of the questions that a stage can use.
        progress: Shows the first question that is too long.
        judged_types: See `load_questions`, as for the others.
        learn_responses: As there.
        response_tokens: As there.
        sampler: As there.
        ranks: As there.

    Raises:
        TrainerUsageError: The split is empty, or finished steps used other questions.
        TrainerError: None of its questions can be used.
    """
    recorded = RecordedDrops(run)
    rules = TextRules.of(policy, judged_types=judged_types, learn_responses=learn_responses)
    data = resolve_frames(settings.data, policy.folder)
    lengths = PromptLengths(policy, data, LengthLimit.of(policy, sampler), response_tokens)
    candidates = Candidates(data, rules, recorded.excluded)
    recorded.compare(candidates)
    if not settings.is_blind:
        note_seen_videos(run.folder, policy.folder, candidates.media, ranks)
    return QuestionFeed(
        replace(settings, data=data), policy, candidates, order(candidates), lengths, run, recorded, progress, ranks
    )


def load_questions(
    data: DataSection,
    policy: Policy,
    *,
    progress: ProgressDisplay,
    blind: bool = False,
    judged_types: frozenset[QuestionType] = ALL_TYPES,
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
        judged_types: Drop questions of other types.
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
    records = [record for _, record in iter_split(data)]
    if limit is not None and limit < len(records):
        records = [records[index * len(records) // limit] for index in range(limit)]
    rules = TextRules.of(policy, judged_types=judged_types, learn_responses=learn_responses)
    problems = {record.question_id: rules.find_problem(record) for record in records}
    candidates = [record for record in records if problems[record.question_id] is None]
    dropped = [problem for problem in problems.values() if problem is not None]
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
        raise TrainerError(describe_none_left(data, dropped))
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
