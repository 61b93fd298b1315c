"""A run with vLLM that is stopped and started again."""

import importlib.util
from contextlib import contextmanager

import pytest

from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.progress import SilentProgress

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def test_a_run_stopped_between_steps_draws_the_same_responses_again(started, tmp_path):
    options = {"steps": 4, "max_response_tokens": 24, "learning_rate": 5e-3, "sampler__engine": "vllm"}
    whole = started.grpo(tmp_path / "whole", **options)
    train_grpo(whole)
    broken = started.grpo(tmp_path / "broken", **options)

    class StopError(Exception):
        pass

    class StoppingProgress(SilentProgress):
        @contextmanager
        def task(self, description, *, total, done=0):
            self.left = 3 if description == "GRPO" else -1
            yield self

        def advance(self, amount=1, *, note=""):
            self.left -= 1
            if self.left == 0:
                raise StopError

    with pytest.raises(StopError):
        train_grpo(broken, progress=StoppingProgress())
    assert not (broken.output / "result.json").exists()
    train_grpo(broken)
    assert (broken.output / "rollouts.jsonl").read_text() == (whole.output / "rollouts.jsonl").read_text()
    files = [next((config.output / "model").glob("*.safetensors")).read_bytes() for config in (whole, broken)]
    assert files[0] == files[1]
