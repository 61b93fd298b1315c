"""From a question and its media to tokens and positions, through the checkpoint's own chat template.

A prompt is always tokenised from one complete string, and a shared prompt is cut out of the tokens behind a special
token, where tokenisation can't reach across. Knows no tensors but positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.media import MediaReference
from mrsp_engine.positions import qwen2_5_vl_positions
from mrsp_engine.prompts import Prompt


class PromptBuilder:
    """Builds prompts for one checkpoint.

    Args:
        processor: The checkpoint's processor, for its chat template and tokenizer.
        placeholder_id: Token that stands for a video.
        media_end_id: Token that closes a video.
        turn_start_id: Token that opens a turn.
        merge_size: Patches per side merged into one embedding.
        tokens_per_second: Temporal positions per second of video.
    """

    def __init__(
        self,
        processor: Any,
        *,
        placeholder_id: int,
        media_end_id: int,
        turn_start_id: int,
        merge_size: int,
        tokens_per_second: float,
    ) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._placeholder_id = placeholder_id
        self._media_end_id = media_end_id
        self._turn_start_id = turn_start_id
        self._merge_size = merge_size
        self._tokens_per_second = tokens_per_second
        added = cast(dict[int, Any], self._tokenizer.added_tokens_decoder)
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
        content = [{"type": "video"}] * num_media + [{"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        rendered = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        token_ids = tuple(cast(list[int], self._tokenizer(rendered, add_special_tokens=False)["input_ids"]))
        if token_ids.count(self._placeholder_id) != num_media:
            raise EngineError(
                f"the chat template wrote {token_ids.count(self._placeholder_id)} placeholders for {num_media} media; "
                "check the checkpoint's chat template"
            )
        return token_ids

    def _cut(self, token_ids: tuple[int, ...], *, has_media: bool) -> int:
        """Number of tokens up to and including the last control token before the question's text."""
        last = self._media_end_id if has_media else self._turn_start_id
        places = [index for index, token in enumerate(token_ids) if token == last]
        # Without media the text stands in the second to last turn; the last one is the assistant's, still empty.
        places = places if has_media else places[:-1]
        if not places:
            raise EngineError(f"the chat template writes no token {last} before the question; it can't share a prompt")
        return places[-1] + 1

    def _lay_out(self, token_ids: tuple[int, ...], media: Sequence[MediaReference]) -> Prompt:
        remaining = iter(media)
        expanded: list[int] = []
        for token in token_ids:
            expanded += [token] * (next(remaining).num_tokens if token == self._placeholder_id else 1)
        positions = qwen2_5_vl_positions(
            expanded,
            media,
            placeholder_id=self._placeholder_id,
            merge_size=self._merge_size,
            tokens_per_second=self._tokens_per_second,
        )
        return Prompt(token_ids=token_ids, expanded_ids=tuple(expanded), positions=positions, media=tuple(media))
