"""The dozen responses that the report shows in full: some right, some wrong, some from training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longrl.report.run_data import RunData
from longrl.report.thumbnails import Thumbnail, draw_thumbnails
from longrl_trainer.rewards.base import RewardRequest
from longrl_trainer.rewards.registry import WeightedReward, load_rewards, score_responses
from longvideo_reason_data.records.answers import LETTERS, parse_response

NUM_EVALUATED = 8
NUM_TRAINED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCard:
    """One response with its context."""

    origin: str
    skill: str
    question: str
    options: tuple[str, ...]
    right: str
    chosen: str | None
    reasoning: str
    """Its reasoning, or the whole response if it can't be parsed."""
    answer: str | None
    reward: float | None
    advantage: float | None
    is_right: bool
    frames: tuple[Thumbnail, ...]

    def lettered(self) -> list[tuple[str, str]]:
        """Options with their letters."""
        return list(zip(LETTERS, self.options, strict=False))


def choose_cards(run: RunData) -> list[RolloutCard]:
    """Responses of the final model to held-out questions, then responses from the first and the last steps of GRPO."""
    rewards = load_rewards(run.config["grpo"]["rewards"])
    media = {question_id: set(record.digests) for question_id, record in run.records.items()}
    chosen = choose_items(run.grpo["items"], NUM_EVALUATED, media)
    evaluated = [_evaluated_card(run, item, rewards) for item in chosen]
    return evaluated + [_trained_card(run, group, place) for group, place in choose_responses(run.rollouts)]


def choose_items(
    items: Sequence[Mapping[str, Any]], count: int, media: Mapping[str, set[str]]
) -> list[Mapping[str, Any]]:
    """Right and wrong answers of every skill in turn; each medium at most once while there are enough.

    Args:
        items: Evaluated questions.
        count: Number of items to select.
        media: The media of each question, by its id.
    """
    waiting: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for item in items:
        waiting.setdefault((item["skill"], item["correct"]), []).append(item)
    # Right answers of all skills first, then wrong ones, and so on in rotation.
    order = sorted(waiting, key=lambda key: (not key[1], key[0]))
    chosen: list[Mapping[str, Any]] = []
    shown: set[str] = set()
    while len(chosen) < count and any(waiting.values()):
        for key in order:
            if waiting[key] and len(chosen) < count:
                fresh = [item for item in waiting[key] if not media[item["question_id"]] & shown]
                item = (fresh or waiting[key])[0]
                waiting[key].remove(item)
                shown |= media[item["question_id"]]
                chosen.append(item)
    return chosen


def choose_responses(groups: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    """The best and the worst response of a group of the first and of the last step; groups with spread preferred."""
    if not groups:
        return []
    chosen: list[tuple[Mapping[str, Any], int]] = []
    steps = sorted({int(group["step"]) for group in groups})
    for step in dict.fromkeys((steps[0], steps[-1])):
        of_step = [group for group in groups if group["step"] == step]
        group = max(of_step, key=_reward_range)
        places = sorted(range(len(group["responses"])), key=lambda place: -_reward(group["responses"][place]))
        chosen += [(group, place) for place in dict.fromkeys((places[0], places[-1]))]
    return chosen[:NUM_TRAINED]


def _evaluated_card(run: RunData, item: Mapping[str, Any], rewards: Sequence[WeightedReward]) -> RolloutCard:
    record = run.records[item["question_id"]]
    request = RewardRequest(response_text=item["response"], finished=item["finished"], record=record)
    (score,) = score_responses(rewards, [request])
    return _card(
        run,
        question_id=item["question_id"],
        origin="Final model, held-out video",
        text=item["response"],
        reward=score.total,
        advantage=None,
    )


def _trained_card(run: RunData, group: Mapping[str, Any], place: int) -> RolloutCard:
    response = group["responses"][place]
    return _card(
        run,
        question_id=group["question_id"],
        origin=f"GRPO step {group['step']}, response {place + 1} of {len(group['responses'])}",
        text=response["text"],
        reward=response["reward"],
        advantage=response["advantage"],
    )


def _card(
    run: RunData, *, question_id: str, origin: str, text: str, reward: float | None, advantage: float | None
) -> RolloutCard:
    record = run.records[question_id]
    parsed = parse_response(text, record.options)
    return RolloutCard(
        origin=origin,
        skill=str(record.skill),
        question=record.question,
        options=record.options,
        right=record.answer,
        chosen=parsed.letter,
        reasoning=(parsed.reasoning or text).strip(),
        answer=parsed.text,
        reward=reward,
        advantage=advantage,
        is_right=parsed.letter == record.answer,
        frames=tuple(draw_thumbnails(run.dataset, record, run.num_frames)),
    )


def _reward(response: Mapping[str, Any]) -> float:
    return response["reward"] if response["reward"] is not None else 0.0


def _reward_range(group: Mapping[str, Any]) -> float:
    rewards = [_reward(response) for response in group["responses"]]
    return max(rewards) - min(rewards)
