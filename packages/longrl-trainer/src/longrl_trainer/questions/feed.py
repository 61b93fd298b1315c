"""The questions of a run, step by step, with their media opened and encoded when a step needs them.

A run starts at once on a dataset of any size: only records are read before the first step. Every step takes the next
questions of the run's fixed order; the media of the steps after it are prepared meanwhile
(`longrl_trainer.questions.prefetching`). A question that can't be used is dropped with its reason, and the step takes
the next one. All ranks know the same outcomes before anything is decided, so they take the same questions.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from longrl_trainer.config.sections import DataSection
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.questions.candidates import Candidates, describe_none_left
from longrl_trainer.questions.drops import DropLedger, RecordedDrops, describe_other_questions
from longrl_trainer.questions.encoding import (
    File,
    Shown,
    encode_together,
    file_of,
    join_references,
    planned_among,
    references_of,
)
from longrl_trainer.questions.length import PromptLengths
from longrl_trainer.questions.order import Cursor, QuestionOrder, Selection, rounds_of_steps
from longrl_trainer.questions.prefetching import Prefetcher
from longrl_trainer.questions.question import DroppedMedium, DropReason, Question
from longrl_trainer.runs.folder import Run
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.training.ranks import Ranks
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.families.base import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class StepQuestions:
    """What a step takes.

    Attributes:
        rows: Questions that are shown together, with references to their media; none at the end of the run.
        plans: Plans for encoding media whose embeddings aren't stored, by the key of their references.
        selection: Where they are in the order.
    """

    rows: list[list[Question]]
    plans: dict[str, EncodingPlan]
    selection: Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """What a stage wants of its questions.

    Attributes:
        data: The split, and which frames of its videos are shown; without a preset.
        prefetch_steps: Number of steps whose media are prepared while another one runs.
        num_steps: Steps of the run, if their number is known; nothing is prepared for later ones.
        is_blind: Whether no medium is shown.
    """

    data: DataSection
    prefetch_steps: int
    num_steps: int | None = None
    is_blind: bool = False


class QuestionFeed(AbstractContextManager["QuestionFeed"]):
    """Gives every step its questions; all ranks make the same calls together.

    Args:
        settings: What the stage wants.
        policy: Encodes what its store lacks.
        candidates: The questions of the split; closed with this object.
        order: The order in which they are taken.
        lengths: Measures their prompts.
        run: The run, in whose folder dropped questions are listed.
        recorded: What it has dropped before, if it goes on.
        progress: Shows the first question that is too long.
        ranks: Processes that share the work.
    """

    def __init__(
        self,
        settings: FeedSettings,
        policy: Policy,
        candidates: Candidates,
        order: QuestionOrder,
        lengths: PromptLengths,
        run: Run,
        recorded: RecordedDrops,
        progress: ProgressDisplay,
        ranks: Ranks,
    ) -> None:
        self._settings, self._policy, self._candidates, self._lengths = settings, policy, candidates, lengths
        self._run, self._progress, self._ranks = run, progress, ranks
        self.order = order
        self._ledger = DropLedger(candidates, recorded.found)
        self._cursor = Cursor()
        self._used: set[int] = set()
        self._is_length_told = False
        self._outcomes: dict[File, Shown | DroppedMedium] = {}
        self._owners, self._num_owned = dict[File, int](), 0
        self._step, self._asked = run.step, list[int]()
        self._records: dict[int, QuestionRecord] = {}
        for step, num_rounds in enumerate(rounds_of_steps(run.read_series("rounds"), run.step), 1):
            for _ in range(num_rounds):
                self._advance(order.select(self._cursor, partial(self._ledger.is_dropped, step=step)))
        run.save_questions(self._ledger.report())
        self._prefetcher = Prefetcher(settings.data, policy, ranks.size)
        self._look_ahead(run.step, [])

    def take(self, step: int) -> StepQuestions:
        """The next questions of a step (counted from 0), which may take several times; media are stored or have a plan.

        Raises:
            TrainerUsageError: A question that a finished step used can't be used now, or all are too long.
            TrainerError: No question can be used.
        """
        while True:
            selection = self.order.select(self._cursor, self._ledger.is_dropped)
            problems = self._resolve(selection)
            if not problems:
                break
            self._drop(problems, step + 1)
        self._advance(selection)
        asked = [place for item in selection.items for place in item]
        self._step, self._asked = step, [*(self._asked if step == self._step else ()), *asked]
        self._look_ahead(step + 1, self._asked)
        shown = [self._outcomes[file_of(medium)] for place in asked for medium in self._media(place)]
        plans = [item.plan for item in planned_among(shown)]
        return StepQuestions(
            rows=[[self._question(place) for place in item] for item in selection.items],
            plans={plan.reference.key: plan for plan in plans if plan.key.content != "embeddings"},
            selection=selection,
        )

    def preview(self) -> list[list[Question]]:
        """The questions of the run's first step, opened but not encoded: what ranks that share rows take as typical.

        The same whenever a run goes on. A single process gets none.
        """
        if self._ranks.group is None:
            return []
        unusable: set[int] = set()
        while len(unusable) < len(self._candidates):
            selection = self.order.select(Cursor(), unusable.__contains__)
            places = [place for item in selection.items for place in item]
            media = [medium for place in places for medium in self._media(place)]
            self._open(media)
            problems = {place for place in places if self._find_problem(place) is not None}
            if not problems:
                return [[self._question(place) for place in item] for item in selection.items]
            unusable |= problems | self._about_unusable_files(media).keys()
        return []

    @property
    def most_tokens(self) -> int:
        """Maximum tokens of a prompt with its response."""
        return self._lengths.limit.tokens

    def counts(self) -> dict[str, Any]:
        """Number of questions; see `DropLedger.counts`."""
        return self._ledger.counts()

    def __exit__(self, *_: object) -> None:
        """Stop preparing."""
        self._prefetcher.__exit__()
        self._candidates.__exit__()

    def _media(self, place: int) -> tuple[RecordMedium, ...]:
        return () if self._settings.is_blind else self._candidates.media[place]

    def _record(self, place: int) -> QuestionRecord:
        if place not in self._records:
            self._records[place] = self._candidates.read(place)
        return self._records[place]

    def _question(self, place: int) -> Question:
        shown = [self._outcomes[file_of(medium)] for medium in self._media(place)]
        references = [item for found in shown if isinstance(found, tuple) for item in references_of(found)]
        return Question(record=self._record(place), media=tuple(references))

    def _references(self, medium: RecordMedium) -> DroppedMedium | tuple[MediaReference, ...]:
        shown = self._outcomes[file_of(medium)]
        return shown if isinstance(shown, DroppedMedium) else tuple(references_of(shown))

    def _advance(self, selection: Selection) -> None:
        self._cursor = selection.after
        self._used.update(place for item in selection.items for place in item)

    def _resolve(self, selection: Selection) -> dict[int, DroppedMedium]:
        """Open and encode the media of a step; returns which candidates, of this step or not, can't be used and why."""
        places = [place for item in selection.items for place in item]
        self._open([medium for place in places for medium in self._media(place)])
        problems = {place: self._find_problem(place) for place in places}
        files = {file_of(m): m for place in places if problems[place] is None for m in self._media(place)}
        shown = [self._outcomes[file] for file in files]
        frames = planned_among(shown)
        with self._prefetcher.only_needed(frozenset(item.plan.key.digest for item in frames)):
            encoded = encode_together(self._policy, shown, frames, self._ranks)
        outcomes = zip(files, encoded, strict=True)
        self._outcomes |= {file: outcome for file, outcome in outcomes if isinstance(outcome, DroppedMedium)}
        found = {place: problem for place, problem in problems.items() if problem is not None}
        return found | self._about_unusable_files([medium for place in places for medium in self._media(place)])

    def _open(self, media: Iterable[RecordMedium]) -> None:
        """Learn of every rank what it found in its files."""
        lacking = {file_of(medium): medium for medium in media if file_of(medium) not in self._outcomes}
        if not lacking:
            return
        self._share(lacking)
        shares: list[list[File]] = [[] for _ in range(self._ranks.size)]
        for file in lacking:
            shares[self._owners[file]].append(file)
        found = self._ranks.divide(
            shares, lambda own: [self._prefetcher.collect([lacking[file] for file in share]) for share in own]
        )
        for share, outcomes in zip(shares, found, strict=True):
            self._outcomes |= zip(share, outcomes, strict=True)

    def _share(self, files: Iterable[File]) -> None:
        """Give every new file to a rank, in turn."""
        for file in files:
            if file not in self._owners:
                self._owners[file] = self._num_owned % self._ranks.size
                self._num_owned += 1

    def _find_problem(self, place: int) -> DroppedMedium | None:
        """What is wrong with a question: an unusable medium, or its length."""
        references = join_references([self._references(medium) for medium in self._media(place)])
        if isinstance(references, DroppedMedium):
            return references
        return self._lengths.find_problem(self._record(place), references)

    def _about_unusable_files(self, media: Sequence[RecordMedium]) -> dict[int, DroppedMedium]:
        """All candidates about files that turned out to be unusable."""
        outcomes = {file_of(medium): self._outcomes[file_of(medium)] for medium in media}
        unusable = {file: found for file, found in outcomes.items() if isinstance(found, DroppedMedium)}
        problems: dict[int, DroppedMedium] = {}
        for place in range(len(self._candidates)) if unusable else ():
            reasons = [unusable[file_of(m)] for m in self._media(place) if file_of(m) in unusable]
            if reasons and not self._ledger.is_dropped(place):
                problems[place] = reasons[0]
        return problems

    def _drop(self, problems: dict[int, DroppedMedium], step: int) -> None:
        """Drop questions before a step (counted from 1), unless finished steps used them."""
        used = [place for place in problems if place in self._used]
        if used:
            change = describe_other_questions(
                {}, {self._candidates.ids[place]: problems[place].detail for place in used}
            )
            self._run.accept_other_questions(str(change), after_step=step - 1)
        for place, problem in problems.items():
            self._ledger.add(place, problem, step)
        self._run.save_questions(self._ledger.report())
        dropped = self._ledger.all_dropped()
        too_long = [item for item in dropped if item.reason is DropReason.PROMPT_TOO_LONG]
        if self._ledger.is_everything:
            data = self._settings.data
            if len(too_long) == len(dropped):
                raise TrainerUsageError(f"{data.dataset}: {self._lengths.describe_refused(len(dropped), len(dropped))}")
            raise TrainerError(describe_none_left(data, dropped))
        if too_long and not self._is_length_told:
            self._is_length_told = True
            self._progress.say(f"{too_long[0].question_id}: {too_long[0].detail}; such questions are dropped")

    def _look_ahead(self, step: int, asked: Sequence[int]) -> None:
        """Begin with what the steps from `step` on need, and forget what neither they nor the one before need."""
        settings, cursor, coming = self._settings, self._cursor, list[int]()
        last = step + settings.prefetch_steps
        for _ in range(step, last if settings.num_steps is None else min(last, settings.num_steps)):
            selection = self.order.select(cursor, self._ledger.is_dropped)
            coming += [place for item in selection.items for place in item]
            cursor = selection.after
        needed = {file_of(medium) for place in (*asked, *coming) for medium in self._media(place)}
        self._outcomes = {file: found for file, found in self._outcomes.items() if file in needed}
        self._owners = {file: owner for file, owner in self._owners.items() if file in needed}
        self._records = {place: self._record(place) for place in (*asked, *coming)}
        questions: dict[RecordMedium, list[Callable[..., bool]]] = {}
        for place in coming:
            for medium in self._media(place):
                questions.setdefault(medium, []).append(partial(self._lengths.fits, self._records[place]))
        self._share(file_of(medium) for medium in questions)
        self._prefetcher.look_ahead(
            {
                medium: of_medium
                for medium, of_medium in questions.items()
                if self._owners[file_of(medium)] == self._ranks.rank and file_of(medium) not in self._outcomes
            },
            frozenset(item.plan.key.digest for item in planned_among(list(self._outcomes.values()))),
        )
