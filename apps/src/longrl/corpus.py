"""The texts for training a tiny model's tokenizer: prompts and responses like those the model will see."""

from collections.abc import Iterable, Iterator
from itertools import cycle

from longvideo_reason_data.records.answers import LETTERS, format_prompt, format_response
from longvideo_reason_data.records.record import NUM_OPTIONS, QuestionRecord
from longvideo_reason_data.timeline.questions import create_questions
from longvideo_reason_data.timeline.world import WorldSettings, create_world

NUM_STORIES = 200
QUESTIONS_PER_STORY = 8


def corpus_of_records(records: Iterable[QuestionRecord]) -> Iterator[str]:
    """Prompts and responses of a dataset, in the form that the model will see."""
    for record in records:
        yield format_prompt(record.question, record.options)
        yield format_response(record.reasoning, record.answer)


def corpus_of_stories() -> Iterator[str]:
    """Prompts and responses about stories that are never rendered; always the same."""
    letters = cycle(LETTERS[:NUM_OPTIONS])
    for number in range(NUM_STORIES):
        world = create_world(f"corpus/{number}", WorldSettings())
        for question in create_questions(world, letters, QUESTIONS_PER_STORY):
            yield format_prompt(question.question, question.options)
            yield format_response(question.reasoning, question.answer)
