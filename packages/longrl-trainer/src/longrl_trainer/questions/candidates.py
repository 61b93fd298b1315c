"""The questions of a split whose texts a stage can use, before any medium is opened: few bytes each.

A split may have a hundred thousand questions, so their records stay in the file (`RecordFile`) and are read again when
a step needs them. What is kept of a question is its row, its id and its media, which questions share.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from longrl_trainer.config.sections import DataSection, records_path
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.questions.question import DroppedQuestion, DropReason
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.answers import format_prompt, format_response, parse_response
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, RecordFile, Split, iter_records
from mrsp_engine.families.base import Policy

ALL_TYPES = frozenset(QuestionType)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """What the texts of a record must be for a stage.

    Attributes:
        control_tokens: Tokens of the model that no text may contain.
        judged_types: Types of questions whose answers a reward judges.
        learn_responses: Whether reasoning and answer must form a well-formed response.
    """

    control_tokens: tuple[str, ...]
    judged_types: frozenset[QuestionType] = ALL_TYPES
    learn_responses: bool = False

    @classmethod
    def of(
        cls, policy: Policy, *, judged_types: frozenset[QuestionType] = ALL_TYPES, learn_responses: bool = False
    ) -> "TextRules":
        """The rules for a model."""
        return cls(control_tokens=control_tokens_of(policy), judged_types=judged_types, learn_responses=learn_responses)

    def find_problem(self, record: QuestionRecord) -> DroppedQuestion | None:
        """Return what makes the texts of a record unusable, if anything does."""
        found = self._problem(record)
        return found and DroppedQuestion(question_id=record.question_id, reason=found[0], detail=found[1])

    def _problem(self, record: QuestionRecord) -> tuple[DropReason, str] | None:
        if record.question_type not in self.judged_types:
            return DropReason.NO_REWARD, f"no reward of the recipe judges answers of the type {record.question_type}"
        response = format_response(record.reasoning, record.answer) if self.learn_responses else ""
        text = format_prompt(record.question, record.options) + response
        found = next((token for token in self.control_tokens if token in text), None)
        if found is not None:
            return DropReason.CONTROL_TOKEN, f"its text contains {found!r}, a control token of the model"
        if self.learn_responses and not parse_response(response, record.options).well_formed:
            return DropReason.MALFORMED_RESPONSE, "its reasoning is empty, or contains a tag of the answer grammar"
        return None


def control_tokens_of(policy: Policy) -> tuple[str, ...]:
    """The tokens of a model that no text may contain."""
    return tuple(str(token) for token in policy.tokenizer.added_tokens_decoder.values() if token.special)


def find_control_tokens(policy: Policy) -> frozenset[int]:
    """The control tokens of a model that don't end a response, such as the placeholders of media."""
    added = policy.tokenizer.added_tokens_decoder
    return frozenset(number for number, token in added.items() if token.special) - set(policy.end_token_ids)


def iter_split(data: DataSection) -> Iterator[tuple[int, QuestionRecord]]:
    """The records of a split with their rows in the file.

    Raises:
        TrainerUsageError: There are none.
    """
    is_empty = True
    for number, record in enumerate(iter_records(records_path(data))):
        if record.split == Split(data.split):
            is_empty = False
            yield number, record
    if is_empty:
        raise TrainerUsageError(
            f"{data.dataset} has no questions in the split {data.split!r}; set another `data.split`, or build the "
            f"dataset again with --replace and a larger share (`--splits.{data.split.replace('_', '-')}`): no question "
            "is written anew; filters ask again about those whose right letter moves"
        )


class Candidates(AbstractContextManager["Candidates"]):
    """The questions of a split that a run can take, named by their places in it, and what is wrong with the others.

    Args:
        data: The split.
        rules: What its texts must be.
        excluded: Questions that the run has left out from its beginning, by id.

    Attributes:
        ids: The ids of the questions.
        media: Their media in the order in which they are shown; questions about the same ones share a tuple.
        dropped: The questions left out.

    Raises:
        TrainerUsageError: The split is empty.
        TrainerError: None of its questions can be used.
    """

    def __init__(
        self, data: DataSection, rules: TextRules, excluded: Mapping[str, DroppedQuestion] | None = None
    ) -> None:
        self._path = records_path(data)
        self.ids: list[str] = []
        self.media: list[tuple[RecordMedium, ...]] = []
        self.dropped: list[DroppedQuestion] = []
        self._rows: list[int] = []
        shared: dict[tuple[int, ...], tuple[RecordMedium, ...]] = {}
        for number, record in iter_split(data):
            problem = (excluded or {}).get(record.question_id) or rules.find_problem(record)
            if problem is not None:
                self.dropped.append(problem)
                continue
            self._rows.append(number)
            self.ids.append(record.question_id)
            # Records about one medium have the same object, which stays alive here.
            self.media.append(shared.setdefault(tuple(map(id, record.media)), record.media))
        if not self.ids:
            raise TrainerError(describe_none_left(data, self.dropped))
        self._file = RecordFile(self._path)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, place: int) -> QuestionRecord:
        """The record of a question.

        Raises:
            DataError: The file is damaged or was changed meanwhile.
        """
        record = self._file.read(self._rows[place])
        if record.question_id != self.ids[place]:
            raise TrainerError(f"{self._path} was changed during the run; restore it, or start a new run")
        return record

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.__exit__()


def describe_none_left(data: DataSection, dropped: Sequence[DroppedQuestion]) -> str:
    """One line for a split all of whose questions were dropped."""
    first = dropped[0]
    return (
        f"none of the {len(dropped)} questions of {data.dataset} can be used; the first: {first.question_id}: "
        f"{first.detail}"
    )
