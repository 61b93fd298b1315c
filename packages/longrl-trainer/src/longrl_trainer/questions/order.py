"""The order in which a run takes its questions: it depends on the seed and the data, not on when something was found.

An epoch is a fixed list of items, each one or several questions that are shown together. A step takes the next ones,
without the questions that were dropped before it. So what every step took follows from the dropped questions and the
steps before which they were found, and a run that goes on finds its place again without opening a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longrl_trainer.config.objectives import MOST_ROUNDS
from longrl_trainer.errors import TrainerUsageError

Item = tuple[int, ...]
"""Places of the candidates that are shown together."""
PlanEpoch = Callable[[int], Sequence[Item]]
"""The items of an epoch; every epoch has equally many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in the order: the next item."""

    epoch: int = 0
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a step takes.

    Attributes:
        items: Its items without dropped questions; none if the run is at its end.
        first: The place of its first item.
        after: Where the next step goes on.
    """

    items: tuple[Item, ...]
    first: Cursor
    after: Cursor


def rounds_of_steps(noted: Sequence[float | None], num_steps: int) -> list[int]:
    """How often each of the steps so far took items: as its line in the journal says, and once if it says nothing.

    Raises:
        TrainerUsageError: The journal says something else.
    """
    rounds = [*(1 if value is None else value for value in noted), *[1] * num_steps][:num_steps]
    for value in rounds:
        if value not in range(1, MOST_ROUNDS + 1):
            raise TrainerUsageError(f"metrics.jsonl: rounds is {value}, expected 1 to {MOST_ROUNDS}")
    return [int(value) for value in rounds]


class QuestionOrder:
    """The items of all epochs.

    Args:
        plan_epoch: Lists the items of an epoch.
        items_per_step: Number of items that a step takes.
        num_epochs: Where the run ends, and then no step takes items of two epochs; None for a run that takes as many
            epochs as its steps need.
    """

    def __init__(self, plan_epoch: PlanEpoch, items_per_step: int, num_epochs: int | None = None) -> None:
        self._plan_epoch = plan_epoch
        self._items_per_step = items_per_step
        self._num_epochs = num_epochs
        self._epochs: dict[int, Sequence[Item]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch without dropped questions, the last of which may be smaller."""
        return -(-len(self._epoch(0)) // self._items_per_step)

    def place_in_schedule(self, selection: Selection) -> int:
        """The step (from 0) that a selection would be if nothing had been dropped before it."""
        first = selection.first
        return first.epoch * self.steps_per_epoch + first.place // self._items_per_step

    def select(self, cursor: Cursor, is_dropped: Callable[[int], bool]) -> Selection:
        """The next step's items from a place on. At least one question of every epoch must be left."""
        chosen: list[Item] = []
        epoch, place, first = cursor.epoch, cursor.place, cursor
        while len(chosen) < self._items_per_step and epoch != self._num_epochs:
            items = self._epoch(epoch)
            while len(chosen) < self._items_per_step and place < len(items):
                item = tuple(question for question in items[place] if not is_dropped(question))
                if item and not chosen:
                    first = Cursor(epoch=epoch, place=place)
                chosen += [item] if item else []
                place += 1
            if place == len(items):
                if chosen and self._num_epochs is not None:
                    break
                if len(chosen) < self._items_per_step:
                    epoch, place = epoch + 1, 0
        return Selection(items=tuple(chosen), first=first, after=Cursor(epoch=epoch, place=place))

    def _epoch(self, epoch: int) -> Sequence[Item]:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._plan_epoch(epoch)
        return self._epochs[epoch]
