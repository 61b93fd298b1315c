"""How a request has to be put for a server that knows less of the protocol than others, found out from its rejections.

A server that rejects a request says what is wrong with it, in the fields of the error or in its words only: a parameter
that it doesn't know, a temperature that it fixes, more pictures than it takes, a prompt that leaves no room for the
answer. `adapt` draws from that how to ask again; None means that nobody can help. What one request taught holds for all
others to the same model, so nothing is learnt twice in a session.

An adaptation changes how a request is sent, never its key: its answer is found again however it was asked, and
`Adaptation.changes` says in words how that was. It depends on the request alone wherever the server's reason does, so
that it doesn't matter which request was sent first.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longvideo_reason_data.language_model.failures import Rejection
from longvideo_reason_data.language_model.requests import Picture, Request

NEUTRAL_SAMPLING: Mapping[str, int | float] = {"top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
"""Sampling as the model's own probabilities have it; without them many a server takes its checkpoint's habits.

A checkpoint with `top_k` 1 in its generation_config.json would give one answer for all samples of a question.
"""

_ALL_SAMPLING = "neutral sampling"
_LEAST_ROOM = 4  # an answer may get a quarter of the tokens that it was meant to have, and no less
_TEXT_IN_PARTS = "text in parts"

_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?!\d)")  # a longer one counts neither tokens nor pictures
_SUM = re.compile(r"(?<!\d)(\d{1,9})\s*\+\s*\d+\s*>\s*(\d{1,9})(?!\d)")
_CONTEXT = re.compile(
    r"(?:context (?:length|size|window|limit)|max(?:imum)? model len\w*|n_ctx)\D{0,40}(\d{1,9})(?!\d)", re.I
)
_PICTURES = re.compile(r"\b(?:images?|pictures?|media|multi-?modal)\b", re.I)
_TOO_MANY = re.compile(r"too (?:many|much)|at most|up to|max|limit|exceed|more than|only|>", re.I)
_OF_ONE_PICTURE = re.compile(
    r"pixel|dimension|resolution|at most 0 |is not a multi|(?:not|n't) (?:support|accept|take) (?:image|vision|multi)"
    r"|(?:image|vision|multi-?modal)\w*(?: inputs?)?(?: is| are)? not supported",
    re.I,
)
_TEXT_WANTED = re.compile(
    r"expected a string|valid string|(?:must|should) be a string|invalid type: sequence|expected str\b", re.I
)
_UNKNOWN = re.compile(r"unsupported|unknown|unrecogni[sz]ed|unexpected|not (?:supported|permitted|allowed)|extra", re.I)
_SOME_PARAMETER = re.compile(r"param|argument|field|propert|\bkeys?\b", re.I)
_RANGE = re.compile(r"greater|less|between|range|positive|at least|at most|[<>≤≥]", re.I)
_SCHEMA = re.compile(r"response_format|json_schema|structured output|guided|grammar", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """What a server wants otherwise than the protocol has it.

    Attributes:
        left_out: Names of parameters that it doesn't take; `name=value` where it is only that value.
        limit_name: What it calls the longest answer.
        most_tokens: Longest answer that it gives.
        fewer_pictures: Pairs: a request with at least so many pictures is sent with so many.
        room: Tokens left for the answer to this one request, whose prompt all but fills the context.
        takes_sampling: Whether it ever took all that is sent about sampling.
    """

    left_out: frozenset[str] = frozenset()
    limit_name: str = "max_tokens"
    most_tokens: int | None = None
    fewer_pictures: frozenset[tuple[int, int]] = frozenset()
    room: int | None = None
    takes_sampling: bool = False

    def joined(self, other: "Adaptation") -> "Adaptation":
        """Put together what two requests taught, without what concerned one of them only."""
        limits = [most for most in (self.most_tokens, other.most_tokens) if most is not None]
        return Adaptation(
            left_out=self.left_out | other.left_out,
            limit_name=other.limit_name if self.limit_name == "max_tokens" else self.limit_name,
            most_tokens=min(limits, default=None),
            fewer_pictures=self.fewer_pictures | other.fewer_pictures,
            takes_sampling=self.takes_sampling or other.takes_sampling,
        )

    def leaves_out(self, name: str, value: object) -> bool:
        """Whether a parameter of this value isn't sent."""
        return bool(self.left_out & {name, f"{name}={value}"})

    def leaves_out_schema(self, schema: Mapping[str, Any]) -> bool:
        """Whether a JSON schema is told in words."""
        return self.leaves_out("response_format", _digest(schema))

    @property
    def sampling(self) -> dict[str, int | float]:
        """What is sent about sampling besides the temperature."""
        left_out = self.left_out
        return {} if _ALL_SAMPLING in left_out else {n: v for n, v in NEUTRAL_SAMPLING.items() if n not in left_out}

    @property
    def joins_text(self) -> bool:
        """Whether a message without pictures is sent as one string."""
        return _TEXT_IN_PARTS in self.left_out

    def kept_parts(self, parts: Sequence[str | Picture]) -> list[int]:
        """Choose the parts of a message that are sent: all, or evenly spread pictures with the texts.

        Where each picture stands behind a text of its own, such as its time, that text goes with it.
        """
        places = [place for place, part in enumerate(parts) if isinstance(part, Picture)]
        num_given = len(places)
        most = min((to for least, to in self.fewer_pictures if num_given >= least), default=num_given)
        if most >= num_given:
            return list(range(len(parts)))
        chosen = {places[(2 * number + 1) * num_given // (2 * most)] for number in range(most)}
        lost = set(places) - chosen
        if all(place and isinstance(parts[place - 1], str) for place in places):
            lost |= {place - 1 for place in lost}
        return [place for place in range(len(parts)) if place not in lost]

    def applied(self, request: Request) -> Request:
        """Give the request as it is sent, with fewer pictures and a shorter answer where that is wanted."""
        limits = (request.max_tokens, self.most_tokens, self.room)
        return replace(
            request,
            parts=tuple(request.parts[place] for place in self.kept_parts(request.parts)),
            max_tokens=min(limit for limit in limits if limit is not None),
        )

    def changes(self, request: Request) -> tuple[str, ...]:
        """Say how a request is put otherwise than it was written."""
        sent = self.applied(request)
        said: list[str] = []
        if self.leaves_out("temperature", request.temperature):
            said.append("without temperature")
        if request.sample_index and self.leaves_out("seed", request.sample_index):
            said.append("without seed")
        said += [f"without {name}" for name in NEUTRAL_SAMPLING if name not in self.sampling]
        if request.schema is not None and self.leaves_out_schema(request.schema):
            said.append("with the JSON schema in words")
        if self.limit_name != "max_tokens":
            said.append(f"with {self.limit_name} in place of max_tokens")
        if sent.num_pictures < request.num_pictures:
            said.append(f"with at most {sent.num_pictures} pictures, evenly spread")
        if sent.max_tokens < request.max_tokens:
            is_room = self.room is not None and self.room == sent.max_tokens
            said.append("with an answer cut to the context" if is_room else f"with at most {self.most_tokens} tokens")
        if self.joins_text and not request.num_pictures:
            said.append("with the text in one piece")
        return tuple(said)


def adapt(adaptation: Adaptation, request: Request, rejection: Rejection) -> Adaptation | None:
    """Think of another way to put a request that was rejected.

    Args:
        adaptation: How it was put.
        request: What was asked.
        rejection: What the server said.

    Returns:
        Another way, which leaves out or lowers something that was sent; None when there is none.
    """
    sent = adaptation.applied(request)
    if rejection.is_too_long:
        return _make_room(adaptation, request, sent, rejection) or _show_half(adaptation, request, sent)
    if rejection.status == 413:
        return _show_half(adaptation, request, sent)
    if _is_about_number_of_pictures(sent, rejection):
        named = _largest_below(sent.num_pictures, rejection.message)
        if named is None:
            return _show_half(adaptation, request, sent)
        return replace(adaptation, fewer_pictures=adaptation.fewer_pictures | {(named + 1, named)})
    if not sent.num_pictures and not adaptation.joins_text and _TEXT_WANTED.search(rejection.message):
        return replace(adaptation, left_out=adaptation.left_out | {_TEXT_IN_PARTS})
    return _leave_out(adaptation, sent, rejection)


def _make_room(adaptation: Adaptation, request: Request, sent: Request, rejection: Rejection) -> Adaptation | None:
    """Shorten the answer where the prompt fits and the server says how much of the context it takes."""
    words = rejection.message
    if "at least" in words:  # it stopped counting; nobody knows how much the prompt takes
        rooms = [sent.max_tokens // 2]
    elif adaptation.room is not None:
        return None
    elif added := _SUM.search(words):
        rooms = [int(added[2]) - int(added[1])]
    elif stated := _CONTEXT.search(words):
        numbers = [int(number) for number in _NUMBER.findall(words)]
        if sent.max_tokens in numbers:
            numbers.remove(sent.max_tokens)
        rooms = [int(stated[1]) - number for number in numbers]
    else:
        return None
    # What is left of the context is less than what the answer was to have; every other number says something else.
    fitting = [room for room in rooms if request.max_tokens / _LEAST_ROOM <= room < sent.max_tokens]
    return replace(adaptation, room=min(fitting)) if fitting else None


def _show_half(adaptation: Adaptation, request: Request, sent: Request) -> Adaptation | None:
    """Show half of the pictures, for nobody knows how many would fit; the rule is for requests with as many."""
    if sent.num_pictures < 2:
        return None
    rule = (request.num_pictures, sent.num_pictures // 2)
    return replace(adaptation, fewer_pictures=adaptation.fewer_pictures | {rule})


def _is_about_number_of_pictures(sent: Request, rejection: Rejection) -> bool:
    words = rejection.message
    return bool(
        sent.num_pictures > 1
        and _PICTURES.search(words)
        and _TOO_MANY.search(words)
        and not _OF_ONE_PICTURE.search(words)
    )


def _leave_out(adaptation: Adaptation, sent: Request, rejection: Rejection) -> Adaptation | None:
    """Leave out what is named: by the fields of the error, else in its words; else what servers seldom know."""
    # Whatever else is wrong, these may go first; a server may find fault with the temperature beside one of them.
    if unknown := {name for name in adaptation.sampling if _names(rejection, name)}:
        return replace(adaptation, left_out=adaptation.left_out | unknown)
    left_out = set(adaptation.left_out)
    if _names(rejection, "temperature") and not adaptation.leaves_out("temperature", sent.temperature):
        # A server that takes some temperatures may get those; one that has its own takes none.
        of_value = _RANGE.search(rejection.message) and not _UNKNOWN.search(rejection.message)
        left_out.add(f"temperature={sent.temperature}" if of_value else "temperature")
    if sent.sample_index and _names(rejection, "seed"):
        left_out.add("seed")
    adapted = replace(adaptation, left_out=frozenset(left_out))
    if _names(rejection, adaptation.limit_name):
        adapted = _other_limit(adapted, sent, rejection)
    has_schema = sent.schema is not None and not adaptation.leaves_out_schema(sent.schema)
    in_words = {f"response_format={_digest(sent.schema or {})}"}
    if has_schema and _SCHEMA.search(rejection.message):
        adapted = replace(adapted, left_out=adapted.left_out | in_words)
    if adapted != adaptation:
        return adapted
    # Nothing is named. What is tried in vain is sent again beside the next.
    is_of_some_parameter = _UNKNOWN.search(rejection.message) and _SOME_PARAMETER.search(rejection.message)
    may_be_of_sampling = (is_of_some_parameter and not rejection.parameters) or not rejection.message
    if adaptation.sampling and not adaptation.takes_sampling and may_be_of_sampling:
        return replace(adaptation, left_out=adaptation.left_out | {_ALL_SAMPLING})
    if has_schema:
        return replace(adaptation, left_out=adaptation.left_out - {_ALL_SAMPLING} | in_words)
    return None


def _other_limit(adaptation: Adaptation, sent: Request, rejection: Rejection) -> Adaptation:
    """Call the longest answer by the newer name, or make it as long as the server allows."""
    words = rejection.message
    is_unknown = "max_completion_tokens" in words or rejection.is_unknown_parameter or _UNKNOWN.search(words)
    if is_unknown and adaptation.limit_name == "max_tokens":
        return replace(adaptation, limit_name="max_completion_tokens")
    most = _largest_below(sent.max_tokens, words)
    return replace(adaptation, most_tokens=most) if most is not None else adaptation


def _names(rejection: Rejection, name: str) -> bool:
    """Whether an error is about a parameter; its words count only where its fields name none that is sent."""
    sendable = {"temperature", "seed", "max_tokens", "max_completion_tokens", "response_format", *NEUTRAL_SAMPLING}
    if named := rejection.parameters & sendable:
        return name in named
    return re.search(rf"(?<!\w){name}(?!\w)", rejection.message, re.I) is not None


def _largest_below(bound: int, words: str) -> int | None:
    return max((number for number in map(int, _NUMBER.findall(words)) if 0 < number < bound), default=None)


def _digest(schema: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:16]
