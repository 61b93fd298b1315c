"""From a question and its media to tokens and positions, through the checkpoint's own chat template.

A prompt is always tokenised from one complete string, and a shared prompt is cut after a special token, across which
the tokenizer merges nothing. The module is independent of families: a medium is what the template writes for it, the
tokens of that, and a rule for what replaces them once its embedding is known.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from longrl_files.messages import visible
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.template_trial import describe_trial
from mrsp_engine.prompts import ONE_AXIS, MediaTokens, PositionRule, Prompt

__all__ = ["TURN_START", "ChatPrompts", "check_token"]

TURN_START = "<|im_start|>"
LONGEST_TEMPLATE_TEXT = 1 << 20
MOST_REPETITIONS = 8
"""Of a text by the template that writes it."""
NUM_REMEMBERED, LONGEST_REMEMBERED = 8192, 2048
"""Texts whose tokens are kept, and the characters of the longest: every epoch asks for the same short ones."""


class ChatPrompts:
    """Builds prompts for one checkpoint.

    Args:
        template: A processor or tokenizer with the checkpoint's chat template.
        tokenizer: The checkpoint's tokenizer.
        media: How media are written, by modality; empty for a text-only model.
        positions: The family's rule.
        num_embedded: Number of tokens that the model can embed; others can't occur in a text.

    Raises:
        EngineUsageError: The template doesn't end, or takes more memory than any should.
    """

    def __init__(
        self,
        template: Any,
        tokenizer: Any,
        media: Mapping[str, MediaTokens],
        positions: PositionRule = ONE_AXIS,
        *,
        num_embedded: int,
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._media = dict(media)
        self._positions = positions
        self._lengths: dict[tuple[MediaReference, ...], int] = {}
        self._remembered_text = lru_cache(NUM_REMEMBERED)(self._tokenise)
        self._remembered_turn = lru_cache(NUM_REMEMBERED)(self._tokenise_turn)
        self._turn_start_id = cast(int, tokenizer.convert_tokens_to_ids(TURN_START))
        added = cast(dict[int, Any], tokenizer.added_tokens_decoder)
        placeholders = {tokens.placeholder_id for tokens in self._media.values()}
        self._reserved = tuple(
            str(token)
            for index, token in added.items()
            if token.special or index in placeholders or index >= num_embedded
        )
        self._try_template()

    def tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a text by itself."""
        return self._tokenise(text) if len(text) > LONGEST_REMEMBERED else self._remembered_text(text)

    def build(self, text: str, media: Sequence[MediaReference], system: str | None) -> Prompt:
        """Build one user turn, media first, and the opening of the assistant's turn."""
        return self._lay_out(self._written_ids(text, media, system), media)

    def length(self, text: str, media: Sequence[MediaReference], system: str | None) -> int:
        """Number of tokens of such a prompt, without building it; each medium is measured once."""
        units = self._units(media)
        for unit in units:
            if unit not in self._lengths:
                tokens = self._tokens_of(unit[0])
                self._lengths[unit] = tokens.length(*unit) - len(tokens.written)
        return len(self._written_ids(text, media, system)) + sum(self._lengths[unit] for unit in units)

    def num_positions(self, text: str, media: Sequence[MediaReference], system: str | None) -> int:
        """Number of positions that such a prompt takes, without building it."""
        rows = sum(medium.num_tokens for medium in media)
        extents = sum(self._positions.extent(*unit) for unit in self._units(media))
        return self.length(text, media, system) - rows + extents

    def build_shared(
        self, media: Sequence[MediaReference], system: str | None
    ) -> tuple[Prompt, Callable[[str], tuple[int, ...]]]:
        """The part before the question's text, and a function from that text to the remaining tokens."""
        empty = self._written_ids("", media, system)
        prefix = empty[: self._cut(empty, media)]

        def tail(text: str) -> tuple[int, ...]:
            written_ids = self._written_ids(text, media, system)
            if written_ids[: len(prefix)] != prefix:
                raise EngineError("the chat template puts the question before the media; it can't share a prompt")
            return written_ids[len(prefix) :]

        return self._lay_out(prefix, media), tail

    def _written_ids(self, text: str, media: Sequence[MediaReference], system: str | None) -> tuple[int, ...]:
        """The tokens as the template writes them, before media are expanded."""
        is_long = len(text) + len(system or "") > LONGEST_REMEMBERED
        return (self._tokenise_turn if is_long else self._remembered_turn)(text, tuple(media), system)

    def _tokenise_turn(self, text: str, media: tuple[MediaReference, ...], system: str | None) -> tuple[int, ...]:
        for content in (text, system or ""):
            found = next((token for token in self._reserved if token in content), None)
            if found is not None:
                raise EngineUsageError(f"text holds {found!r}, a control token of the model; remove it from the text")
        messages: list[dict[str, Any]] = [{"role": "user", "content": self._content(text, media)}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        rendered = self._render(messages)
        longest = LONGEST_TEMPLATE_TEXT + MOST_REPETITIONS * (len(text) + len(system or ""))
        if len(rendered) > longest:
            raise EngineUsageError(
                f"the chat template writes {len(rendered):,} characters for a text of {len(text):,}, expected at most "
                f"{longest:,}; set another model folder"
            )
        return self._tokenise(rendered)

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(cast(list[int], self._tokenizer(text, add_special_tokens=False)["input_ids"]))

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            rendered: Any = self._template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except MemoryError:
            raise
        except Exception as error:  # a template may raise anything
            raise EngineUsageError(
                f"the chat template can't write a conversation ({visible(str(error) or type(error).__name__)}); set "
                "another model folder"
            ) from error
        if not isinstance(rendered, str):
            raise EngineUsageError(
                f"the chat template gives {type(rendered).__name__}, no text; set another model folder"
            )
        return rendered

    def _try_template(self) -> None:
        """Render a sample of each kind where a template without an end can be ended."""
        contents: list[Any] = ["text"]
        for tokens in self._media.values():
            text = {"type": "text", "text": "text"}
            contents.append(f"{tokens.part}text" if isinstance(tokens.part, str) else [tokens.part, text])

        def render() -> None:
            for content in contents:
                with suppress(EngineUsageError):
                    self._render([{"role": "user", "content": content}])

        fault = describe_trial(render)
        if fault is not None:
            raise EngineUsageError(f"the chat template {fault}; set another model folder")

    def _content(self, text: str, media: Sequence[MediaReference]) -> str | list[dict[str, str]]:
        if not media:
            return text  # templates of text-only models accept nothing else
        parts = [self._tokens_of(unit[0]).part for unit in self._units(media)]
        if all(isinstance(part, str) for part in parts):
            return "".join(cast(list[str], parts)) + text
        return [*cast(list[dict[str, str]], parts), {"type": "text", "text": text}]

    def _units(self, media: Sequence[MediaReference]) -> list[tuple[MediaReference, ...]]:
        """Every medium that the template writes, with its companion."""
        units: list[tuple[MediaReference, ...]] = []
        for medium in media:
            before = self._media.get(units[-1][0].modality) if units and len(units[-1]) == 1 else None
            if before is not None and before.companion is not None and before.companion.modality == medium.modality:
                units[-1] = (*units[-1], medium)
            else:
                units.append((medium,))
        return units

    def _tokens_of(self, medium: MediaReference) -> MediaTokens:
        if medium.modality not in self._media:
            takes = f"accepts {' and '.join(self._media)} only" if self._media else "only reads"
            raise EngineUsageError(
                f"{medium.modality} for a model that {takes}; ask without it or set another model folder"
            )
        return self._media[medium.modality]

    def _cut(self, written_ids: tuple[int, ...], media: Sequence[MediaReference]) -> int:
        """Number of tokens up to and including the last control token before the question's text."""
        last = self._media[self._units(media)[-1][0].modality].written[-1] if media else self._turn_start_id
        places = [index for index, token in enumerate(written_ids) if token == last]
        # Without media the text is in the second to last turn; the last one is the assistant's, still empty.
        places = places if media else places[:-1]
        if not places:
            raise EngineError(f"the chat template writes no token {last} before the question; it can't share a prompt")
        return places[-1] + 1

    def _lay_out(self, written_ids: tuple[int, ...], media: Sequence[MediaReference]) -> Prompt:
        sampled: list[int] = []
        expanded: list[int] = []
        cursor, found, units = 0, 0, self._units(media)
        while cursor < len(written_ids):
            tokens = next((t for t in self._media.values() if _starts_with(written_ids, cursor, t.written)), None)
            if tokens is None:
                sampled.append(written_ids[cursor])
                expanded.append(written_ids[cursor])
                cursor += 1
                continue
            if found < len(units) and self._media[units[found][0].modality] is tokens:
                sampled += tokens.written if tokens.sampled is None else tokens.sampled
                expanded += tokens.expanded(*units[found])
            cursor += len(tokens.written)
            found += 1
        placeholders = {tokens.placeholder_id for tokens in self._media.values()}
        if found != len(units) or sum(token in placeholders for token in sampled) != len(units):
            raise EngineError(
                f"the chat template wrote {found} placeholders for {len(units)} media, or in another order; "
                "check the checkpoint's chat template"
            )
        return Prompt(
            token_ids=tuple(sampled),
            expanded_ids=tuple(expanded),
            positions=self._positions.place(expanded, media),
            media=tuple(media),
        )


def _starts_with(token_ids: tuple[int, ...], place: int, pattern: tuple[int, ...]) -> bool:
    return token_ids[place : place + len(pattern)] == pattern


def check_token(folder: Path, tokenizer: Any, token: str, expected_id: int | None = None) -> int:
    """The id of a required special token, which must equal the id in the model's configuration if that has one.

    Raises:
        EngineUsageError: The tokenizer lacks it (transformers creates an empty tokenizer where the files are missing),
            or has another id for it than the model.
    """
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or tokenizer.convert_ids_to_tokens(found) != token:
        raise EngineUsageError(
            f"{folder}: the tokenizer has no {token}; tokenizer files are missing or of another model, "
            "set another model folder"
        )
    if expected_id is not None and found != expected_id:
        raise EngineUsageError(
            f"{folder}: the tokenizer has id {found} for {token}, config.json has {expected_id}; "
            "tokenizer files are of another model, set another model folder"
        )
    return int(found)
