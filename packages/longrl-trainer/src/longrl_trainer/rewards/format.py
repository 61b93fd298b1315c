"""Reward for the shape of a response: one think block, then one answer block, nothing else."""

from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longvideo_reason_data.records.answers import parse_response
from longvideo_reason_data.records.record import QuestionRecord


class FormatReward:
    """1 for a complete and well-formed response, 0 otherwise; always 0 for one that was cut off."""

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response."""
        if not finished:
            return RewardResult(value=0.0, status=RewardStatus.TRUNCATED)
        parsed = parse_response(response_text, record.options)
        return RewardResult(value=float(parsed.well_formed), status=RewardStatus.OK)
