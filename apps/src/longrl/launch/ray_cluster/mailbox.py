"""What the command on a Ray cluster and the launchers of its nodes tell each other, in an actor beside the command.

Ray Train itself ends by killing, and its logs are for its own files. Here a stop is asked for, what the launchers say
reaches the terminal, and their exit statuses the command.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Mailbox", "NodeNews", "SaidLine"]

SaidLine = tuple[str, str]
"""The stream ("out" or "err") and what was said on it."""


@dataclass(slots=True)
class NodeNews:
    """What the nodes have told since the last look.

    Attributes:
        lines: Their number and what was said there, in the order in which it came.
        codes: The exit statuses of the launchers that have ended, by the nodes' numbers, from the beginning.
    """

    lines: list[tuple[int, SaidLine]] = field(default_factory=list[tuple[int, SaidLine]])
    codes: dict[int, int] = field(default_factory=dict[int, int])


class Mailbox:
    """The actor; each method is a call of Ray's.

    Args:
        environment: Variables for the launchers. They may hold keys; Ray logs settings, but no arguments.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._news = NodeNews()
        self._is_stop_asked = False

    def environment(self) -> dict[str, str]:
        """The variables for the launchers."""
        return self._environment

    def tell(self, node: int, lines: list[SaidLine]) -> bool:
        """Bring what a node has said; returns whether it is to stop."""
        self._news.lines += [(node, line) for line in lines]
        return self._is_stop_asked

    def end(self, node: int, code: int) -> None:
        """Tell that a node's launcher has ended."""
        self._news.codes[node] = code

    def ask_to_stop(self) -> None:
        """Ask all launchers to stop their ranks."""
        self._is_stop_asked = True

    def collect(self) -> NodeNews:
        """What is new, which is then no more."""
        news, self._news = self._news, NodeNews(codes=dict(self._news.codes))
        return news
