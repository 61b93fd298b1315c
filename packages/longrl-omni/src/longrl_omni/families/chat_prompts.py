"""From a question and its media to tokens and one-dimensional positions, through the checkpoint's own chat template.

A prompt is always tokenised from one complete string, and a shared prompt is cut out of the tokens behind a special
token, where tokenisation can't reach across. The module knows no modality: a medium is a kind of content part in the
template, a placeholder token and a token that closes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.media import MediaReference
from mrsp_engine.prompts import Prompt

TURN_START = "<|im_start|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaTokens:
    """How a medium is written.

    Attributes:
        content_type: The `type` of a content part in the chat template, such as "audio".
        placeholder_id: Token that stands for the medium.
        end_id: Token that closes it.
    """

    content_type: str
    placeholder_id: int
    end_id: int


class ChatPrompts:
    """Builds prompts for one checkpoint.

    Args:
        template: A processor or tokenizer with the checkpoint's chat template.
        tokenizer: The checkpoint's tokenizer.
        media: How media are written; None for a model that only reads.
    """

    def __init__(self, template: Any, tokenizer: Any, media: MediaTokens | None = None) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._media = media
        self._turn_start_id = cast(int, tokenizer.convert_tokens_to_ids(TURN_START))
        added = cast(dict[int, Any], tokenizer.added_tokens_decoder)
        self._reserved = tuple(str(token) for token in added.values() if token.special)

    def build(self, text: str, media: Sequence[MediaReference], system: str | None) -> Prompt:
        """One user turn, media first, and the opening of the assistant's turn."""
        return self._lay_out(self._token_ids(text, len(media), system), media)

    def build_shared(
        self, media: Sequence[MediaReference], system: str | None
    ) -> tuple[Prompt, Callable[[str], tuple[int, ...]]]:
        """The part before the question's text, and a function from that text to the remaining tokens."""
        empty = self._token_ids("", len(media), system)
        prefix = empty[: self._cut(empty, has_media=bool(media))]

        def tail(text: str) -> tuple[int, ...]:
            token_ids = self._token_ids(text, len(media), system)
            if token_ids[: len(prefix)] != prefix:
                raise EngineError("the chat template puts the question before the media; it can't share a prompt")
            return token_ids[len(prefix) :]

        return self._lay_out(prefix, media), tail

    def _token_ids(self, text: str, num_media: int, system: str | None) -> tuple[int, ...]:
        for content in (text, system or ""):
            found = next((token for token in self._reserved if token in content), None)
            if found is not None:
                raise EngineUsageError(f"text holds {found!r}, a control token of the model; remove it from the text")
        messages: list[dict[str, Any]] = [{"role": "user", "content": self._content(text, num_media)}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        rendered = self._template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        token_ids = tuple(cast(list[int], self._tokenizer(rendered, add_special_tokens=False)["input_ids"]))
        num_found = 0 if self._media is None else token_ids.count(self._media.placeholder_id)
        if num_found != num_media:
            raise EngineError(
                f"the chat template wrote {num_found} placeholders for {num_media} media; "
                "check the checkpoint's chat template"
            )
        return token_ids

    def _content(self, text: str, num_media: int) -> str | list[dict[str, str]]:
        if not num_media:
            return text  # templates of models that only read take nothing else
        if self._media is None:
            raise EngineUsageError(f"{num_media} media for a model that only reads; ask without media")
        return [{"type": self._media.content_type}] * num_media + [{"type": "text", "text": text}]

    def _cut(self, token_ids: tuple[int, ...], *, has_media: bool) -> int:
        """Number of tokens up to and including the last control token before the question's text."""
        last = self._media.end_id if self._media is not None and has_media else self._turn_start_id
        places = [index for index, token in enumerate(token_ids) if token == last]
        # Without media the text stands in the second to last turn; the last one is the assistant's, still empty.
        places = places if has_media else places[:-1]
        if not places:
            raise EngineError(f"the chat template writes no token {last} before the question; it can't share a prompt")
        return places[-1] + 1

    def _lay_out(self, token_ids: tuple[int, ...], media: Sequence[MediaReference]) -> Prompt:
        placeholder_id = None if self._media is None else self._media.placeholder_id
        remaining = iter(media)
        expanded: list[int] = []
        for token in token_ids:
            expanded += [token] * (next(remaining).num_tokens if token == placeholder_id else 1)
        positions = torch.arange(len(expanded))[None]  # [1, P]
        return Prompt(token_ids=token_ids, expanded_ids=tuple(expanded), positions=positions, media=tuple(media))
