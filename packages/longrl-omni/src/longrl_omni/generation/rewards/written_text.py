"""Whether a picture shows the text that its prompt puts in quotation marks, as in Flow-GRPO (arXiv 2505.05470).

The text is read by RapidOCR (extra `reading`): its models come in its package, so nothing is downloaded, none is a
pickle, and no program has to be installed beside Python. The value is 1 - distance / length, at least 0, with the
Levenshtein distance from what was read to the text, without space and in small letters, and the length of the text.
"""

import re
from collections.abc import Sequence
from typing import Any

from longrl_omni.generation.rewards.base import PictureRequest
from longrl_omni.generation.rewards.jpeg import as_bytes
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardResult, RewardStatus

_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»")


class WrittenTextReward:
    """How much of the quoted text is read in the picture; a prompt that quotes none isn't judged.

    Raises:
        TrainerUsageError: RapidOCR isn't installed.
    """

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise TrainerUsageError(f"rewards.written_text needs {error.name}: install longrl-omni[reading]") from error
        self._reader: Any = RapidOCR(params={"Global.log_level": "error"})

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures."""
        return [self._judge(request) for request in requests]

    def _judge(self, request: PictureRequest) -> RewardResult:
        wanted = quoted_text(request.prompt)
        if not wanted:
            return RewardResult(value=None, status=RewardStatus.NOT_APPLICABLE)
        red_green_blue = as_bytes(request.picture).numpy()
        found = self._reader(red_green_blue[:, :, ::-1].copy())  # it takes OpenCV's order of the channels
        text = " ".join(found.txts or ())
        return RewardResult(value=agreement(text, wanted), status=RewardStatus.OK, parsed=text)


def quoted_text(prompt: str) -> str:
    """What a prompt puts in quotation marks, one after the other; empty if nothing."""
    return " ".join("".join(groups) for groups in _QUOTED.findall(prompt))


def agreement(text: str, wanted: str) -> float:
    """1 - Levenshtein distance / length of what is wanted, at least 0; without space and in small letters."""
    from rapidfuzz.distance import Levenshtein

    text, wanted = ("".join(one.split()).casefold() for one in (text, wanted))
    return max(0.0, 1.0 - Levenshtein.distance(text, wanted) / len(wanted))
