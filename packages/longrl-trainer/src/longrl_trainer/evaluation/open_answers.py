"""Open answers of a benchmark: compared by their words, or judged by a language model if the settings name one.

The judge is that of the reward `judge` (`longrl_trainer.rewards.answer_judge`), with a journal and a ledger in the
run's folder, so an evaluation that is repeated asks for nothing twice. Numbers are compared by the rule in any case.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from longrl_trainer.config.benchmarks import JudgeSection
from longrl_trainer.evaluation.scoring.answers import BenchmarkAnswer, is_compared_by_words
from longrl_trainer.rewards.answer_judge import AnswerJudge, OpenAnswer
from longrl_trainer.rewards.event_loop import wait_for
from longvideo_reason_data.benchmarks.questions import BenchmarkQuestion

JUDGE_FOLDER = "judge"
BY_WORDS = "words"


class OpenAnswerJudge:
    """Decides on answers to open questions.

    Args:
        section: The judge's settings.
        questions: All questions of the evaluation.

    Attributes:
        name: By what open answers are decided: `words`, or the judge's name; empty if there are no open questions.

    Raises:
        TrainerUsageError: The judge has no proper address, key or price.
    """

    def __init__(self, section: JudgeSection, questions: Sequence[BenchmarkQuestion]) -> None:
        self._questions: Mapping[str, BenchmarkQuestion] = {
            question.question_id: question
            for question in questions
            if not question.options and question.answer and not is_compared_by_words(question)
        }
        settings = section.settings
        self._judge = None if settings is None else AnswerJudge(settings, "judge")
        decides_by = BY_WORDS if settings is None or not self._questions else settings.model
        self.name = "" if all(question.options for question in questions) else decides_by

    def open(self, folder: Path, held: ExitStack) -> None:
        """Try the judge, if it will be asked.

        Args:
            folder: The run's folder, which gets the journal and the ledger.
            held: Closes them.

        Raises:
            TrainerError: It can't judge.
        """
        if self._judge is not None and self._questions:
            held.enter_context(self._judge.opened(folder / JUDGE_FOLDER))

    def decide(self, answers: Sequence[BenchmarkAnswer]) -> list[BenchmarkAnswer]:
        """The answers, those to open questions as the judge decides; without a judge as they are.

        Raises:
            StoppedError: No judgement has come for longer than the settings' patience, or `max_cost` is used up.
        """
        if self._judge is None or not self._questions:
            return list(answers)
        asked: dict[OpenAnswer, bool | None] = {}
        of_answer: dict[int, OpenAnswer] = {}
        for place, answer in enumerate(answers):
            question = self._questions.get(answer.question_id)
            if question is not None and answer.chosen and any(map(str.isalnum, answer.chosen)):
                said = OpenAnswer(question=question.question, right=question.answer, given=answer.chosen)
                asked[said] = None
                of_answer[place] = said
        asked = dict(zip(asked, wait_for(self._judge.judge(list(asked))), strict=True))
        return [
            answer
            if answer.question_id not in self._questions
            else replace(answer, correct=False)
            if place not in of_answer
            else replace(answer, correct=asked[of_answer[place]] is True, is_undecided=asked[of_answer[place]] is None)
            for place, answer in enumerate(answers)
        ]
