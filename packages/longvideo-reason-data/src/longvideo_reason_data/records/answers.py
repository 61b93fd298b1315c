"""The one grammar of prompts and answers, used alike by filters, rewards and evaluation.

A response is `<think>…</think><answer>…</answer>`. What counts as *well formed* is strict, so that an empty shell earns
no format reward. *An answer* is searched for in a fixed order, in what the model says after its reasoning:

1. the answer block, if there is one (then nothing else is considered);
2. the last explicit phrase such as "the answer is B", in the languages of
   `longvideo_reason_data.records.answer_phrases`, or otherwise the last supposition such as "I think it's B";
3. a line that is only a letter;
4. a line that is exactly an option, with or without its letter.

Two different letters found at the same step are ambiguous, and finding none is no answer: both are wrong, and nothing
is guessed. A letter inside a word, the article "A" and the pronoun "I" are not answers. The grammar judges letters and
exact option texts only; it can't decide whether two free texts mean the same.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from longvideo_reason_data.records.answer_phrases import (
    ANNOUNCED_LETTER,
    ANNOUNCEMENT,
    DENIED,
    ENDS_AS_LETTER,
    GOES_ON_AS_LETTER,
    LETTER_AND_TEXT,
    LETTER_IS_RIGHT,
    LETTER_LIST,
    LONE_LETTER,
    NEGATION,
    ONLY_LETTERS,
    TEXT_AND_LETTER,
    find_suppositions,
    first_sentence,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\s{0,2}\{|[*_`$#{}\"“”]")
_NUM_PHRASES_READ = 500  # from the end; only repetitive text has more
_POLITE_END = re.compile(r"(?:です|だと思います|と思います)$")
_THOUGHTS = r"think(?:ing)?|thoughts?|reasoning"


class ParseStatus(StrEnum):
    """The outcome of a search for an answer."""

    OK = "ok"
    NO_ANSWER = "no_answer"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAnswer:
    """A parsed response.

    Attributes:
        status: Whether one answer was found.
        letter: The chosen option, only with status OK and if there are options.
        well_formed: Exactly one non-empty think block, then exactly one non-empty answer block, and nothing else.
        reasoning: Content of the first think block, or None without a closed one.
        text: Content of the last answer block; for open questions without a block, the visible reply.
    """

    status: ParseStatus
    letter: str | None
    well_formed: bool
    reasoning: str | None
    text: str | None = None


def format_prompt(question: str, options: Sequence[str]) -> str:
    """Write the question with one line per option: `A. …`."""
    lines = [question.strip(), *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))]
    return "\n".join(lines)


def format_response(reasoning: str, answer: str) -> str:
    """Write a response; it is well formed if neither part is empty or contains a tag."""
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


def parse_response(text: str, options: Sequence[str]) -> ParsedAnswer:
    """Find the answer in a model's response.

    Args:
        text: The response as generated, without the special tokens of the tokenizer.
        options: The options of the question in the order they were shown; empty for an open question.

    Returns:
        The answer, or the reason why there is none. Never raises for any text.
    """
    visible, thoughts = _take_blocks(text, _THOUGHTS, keep_unclosed=False)
    reply, answers = _take_blocks(visible, "answer", keep_unclosed=True)
    if options:
        found = {letter for said in answers or [reply] for letter in _choices(said, options)}
    else:
        answers = answers or [reply.strip()]
        found = {said for said in answers if said}
    status = ParseStatus.AMBIGUOUS
    if len(found) < 2:
        status = ParseStatus.OK if found else ParseStatus.NO_ANSWER
    return ParsedAnswer(
        status=status,
        letter=found.pop() if options and status is ParseStatus.OK else None,
        well_formed=_is_well_formed(text),
        reasoning=thoughts[0] if thoughts else None,
        text=answers[-1] if answers else None,
    )


def _is_well_formed(text: str) -> bool:
    """Return whether the text is exactly one think block and one answer block, both non-empty, and whitespace."""
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    before, _, rest = text.partition("<think>")
    reasoning, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    return bool(reasoning.strip() and answer.strip() and closed) and not (before + between + after).strip()


def _take_blocks(text: str, tag: str, *, keep_unclosed: bool) -> tuple[str, list[str]]:
    """Separate the blocks of a tag from the rest.

    Args:
        text: Any text.
        tag: A pattern for names of the tag, case-insensitive.
        keep_unclosed: Whether an opened block that never ends counts as one; if not, what follows is lost.

    Returns:
        The text outside of the blocks, and the blocks. A closing tag without an opening one ends a block that was
        opened in the prompt, so everything before it is inside.
    """
    outside: list[str] = []
    blocks: list[str] = []
    inside: str | None = None
    for place, piece in enumerate(re.split(rf"(</?(?:{tag})>)", text, flags=re.IGNORECASE)):
        is_tag = place % 2 == 1
        if is_tag and not piece.startswith("</"):
            if inside is not None and keep_unclosed:
                blocks.append(inside.strip())
            inside = ""
        elif is_tag:
            blocks.append(("".join(outside) if inside is None else inside).strip())
            outside = [] if inside is None else outside
            inside = None
        elif inside is None:
            outside.append(piece)
        else:
            inside += piece
    if inside is not None and keep_unclosed:
        blocks.append(inside.strip())
    return "\n".join(outside), blocks


def _choices(said: str, options: Sequence[str]) -> set[str]:
    """Find the options that a block or a plain reply names: none, one, or several if it is ambiguous."""
    lines = _lines(said)
    if len(lines) == 1 and (found := _in_line(lines[0], options)):
        return found
    phrase = _last_phrase("\n".join(lines), options)
    if phrase is not None:
        return phrase
    valid = LETTERS[: len(options)]
    lone = {letter for line in lines for letter in _lone_letter(line, valid)}
    return lone or {letter for line in lines for letter in _option_line(line, options)}


def _in_line(line: str, options: Sequence[str]) -> set[str]:
    """Read one line that is only a choice: a letter, an option, or a letter with its option or a reason."""
    valid = LETTERS[: len(options)]
    found = _lone_letter(line, valid) or _options_with_text(line, options)
    if found:
        return found
    if several := LETTER_LIST.match(line):
        return set(several.groups()) & set(valid)
    if ONLY_LETTERS.fullmatch(line):
        named = set(re.findall("[A-Z]", line))
        return named if named <= set(valid) else set()
    if (match := TEXT_AND_LETTER.fullmatch(line)) and (named := _options_with_text(match[1], options)):
        return named | ({match[2]} & set(valid))
    match = LETTER_AND_TEXT.fullmatch(line)
    letter = (match.group(1) or match.group(2)).upper() if match else ""
    if match is None or letter not in valid:
        return set()
    return {letter} | _options_with_text(match.group(3), options) | _lettered_options_in(match.group(3), options)


def _option_line(line: str, options: Sequence[str]) -> set[str]:
    """Read a line of a longer reply: only an exact option counts, with or without its letter."""
    match = LETTER_AND_TEXT.fullmatch(line)
    if match and (named := _options_with_text(match.group(3), options)):
        return named | ({(match.group(1) or match.group(2)).upper()} & set(LETTERS[: len(options)]))
    return _options_with_text(line, options)


def _last_phrase(text: str, options: Sequence[str]) -> set[str] | None:
    """Find what the last explicit phrase says; None without a phrase, empty if it names no valid letter."""
    found = [(match.start(1), {match.group(1).upper()}) for right in LETTER_IS_RIGHT for match in right.finditer(text)]
    found += _announced(ANNOUNCEMENT.finditer(text), text, options)
    found = found or _announced(find_suppositions(text), text, options)
    if not found:
        return None
    return max(found, key=lambda item: item[0])[1] & set(LETTERS[: len(options)])


def _announced(phrases: Iterable[re.Match[str]], text: str, options: Sequence[str]) -> list[tuple[int, set[str]]]:
    """Find the last phrase that is followed by a letter or an option, and where it begins."""
    for phrase in list(phrases)[: -_NUM_PHRASES_READ - 1 : -1]:
        rest = text[phrase.end() : phrase.end() + 2000].split("\n", 1)[0].strip()
        if named := _after_phrase(rest, options):
            return [(phrase.start(), named)]
    return []


def _after_phrase(rest: str, options: Sequence[str]) -> set[str]:
    """Read the words after "the answer is"; letters beyond the options are returned too."""
    sentence = first_sentence(rest)
    if by_text := _options_with_text(rest, options) or _options_with_text(_POLITE_END.sub("", sentence), options):
        return by_text
    match = ANNOUNCED_LETTER.match(rest)
    if match is None:
        return _behind_words(sentence, options)
    bracketed, bare = match.groups()
    after = rest[match.end() :]
    if bare:
        if bare in "AI" and not GOES_ON_AS_LETTER.match(after):
            return _behind_words(sentence, options)
        if bare.islower() and not ENDS_AS_LETTER.match(after):
            return _behind_words(sentence, options)
        if several := LETTER_LIST.match(rest[match.start(2) :]):
            return set(several.groups())
    elif several := LETTER_LIST.match(rest[match.start(1) - 1 :]):
        return set(several.groups())
    if DENIED.match(after):
        return set()
    after = after.lstrip(" .:,)]–-")
    named = _options_with_text(after, options) or _options_with_text(first_sentence(after), options)
    return {(bracketed or bare).upper()} | named


def _behind_words(sentence: str, options: Sequence[str]) -> set[str]:
    """Read a sentence that says an option and then its letter: "the kitchen (B)"."""
    match = TEXT_AND_LETTER.fullmatch(sentence)
    if match is None or NEGATION.search(match[1]) or re.search(r"\b[A-Z]\b", match[1]):
        return set()
    return {match[2]} | _options_with_text(match[1], options)


def _lettered_options_in(text: str, options: Sequence[str]) -> set[str]:
    """Find the options that a text lists with their letters."""
    words = " ".join(text.split()).casefold()
    forms = ("{}. {}", "({}) {}", "{}) {}", "{}: {}")
    return {
        letter
        for letter, option in _lettered(options)
        if any(form.format(letter, " ".join(_normalise(option).split())).casefold() in words for form in forms)
    }


def _lone_letter(line: str, valid: str) -> set[str]:
    """Read a line that is one letter and punctuation."""
    match = LONE_LETTER.fullmatch(line)
    return {match.group(1).upper()} & set(valid) if match else set()


def _options_with_text(text: str, options: Sequence[str]) -> set[str]:
    """Find the options whose whole text this is, regardless of case, spaces and punctuation at the ends."""
    wanted = _bare(text)
    return {letter for letter, option in _lettered(options) if wanted and _bare_option(option) == wanted}


def _lettered(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(LETTERS, options, strict=False)


def _lines(text: str) -> list[str]:
    """Return the non-empty lines, with single spaces and without the marks of Markdown and LaTeX."""
    return [line for line in (" ".join(line.split()) for line in _normalise(text).splitlines()) if line]


def _normalise(text: str) -> str:
    """Fold compatible characters and drop the marks of Markdown and LaTeX."""
    return _MARKUP.sub("", unicodedata.normalize("NFKC", text))


def _bare(text: str) -> str:
    """Return the words of a text for comparison."""
    return " ".join(text.split()).strip(" .,;:!?'\"()[]。、‘’「」『』").casefold()


@lru_cache(maxsize=4096)
def _bare_option(option: str) -> str:
    return _bare(_normalise(option))
