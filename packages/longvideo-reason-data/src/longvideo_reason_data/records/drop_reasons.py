"""Every reason for which a question is dropped, in one place, because reports, manifests and the browser count them."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a question is dropped."""

    # Found from the text alone.
    OPTIONS_ALIKE = "options_alike"
    OPTION_ABOUT_OPTIONS = "option_about_options"
    ANSWER_IS_LONGEST = "answer_is_longest"
    ANSWER_IN_QUESTION = "answer_in_question"
    ANSWER_ECHOES_QUESTION = "answer_echoes_question"
    ANSWER_STANDS_OUT = "answer_stands_out"
    EVIDENCE_OUTSIDE = "evidence_outside"
    REASONING_TOO_SHORT = "reasoning_too_short"
    REASONING_WITHOUT_TIMES = "reasoning_without_times"
    REASONING_TIME_OUTSIDE = "reasoning_time_outside"
    REASONING_CONTRADICTS = "reasoning_contradicts"
    REASONING_HAS_TAGS = "reasoning_has_tags"
    MENTIONS_CAPTIONS = "mentions_captions"
    LETTERS_UNCLEAR = "letters_unclear"
    # Found from other questions.
    NEAR_DUPLICATE = "near_duplicate"
    IN_BENCHMARK = "in_benchmark"
    # Found from models' answers.
    ANSWERED_BLIND = "answered_blind"
    ANSWERED_FROM_ONE_FRAME = "answered_from_one_frame"
    ANSWERED_FROM_CAPTIONS = "answered_from_captions"
    ANSWERED_OTHERWISE = "answered_otherwise"
    AMBIGUOUS = "ambiguous"
    NOT_ANSWERABLE = "not_answerable"
    REASONING_UNSUPPORTED = "reasoning_unsupported"
    TOO_EASY = "too_easy"
    TOO_HARD = "too_hard"
    # Could not be determined.
    VIDEO_UNREADABLE = "video_unreadable"
    UNMEASURED = "unmeasured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a question is dropped, with what was found."""

    reason: Reason
    detail: str
