"""A text model and questions about recordings: refused in one line by every stage, and trained blind on request."""

from pathlib import Path
from typing import Any

import pytest

from longrl_omni.text import is_text
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.sft import train_sft
from mrsp_engine.errors import EngineUsageError

SAMPLER = {"engine": "transformers"}


def settings(model: Path, dataset: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"folder": str(model), "store": str(output.parent / "embeddings")},
        "data": {"dataset": str(dataset), "split": "train_rl", "num_frames": 1},
        "output": str(output),
    } | changes


def test_what_a_text_model_is_not_shown_is_not_left_out_in_silence(text_folder: Path, tones: Path, tmp_path: Path):
    training = {"learning_rate": 1e-3}
    grpo = training | {"steps": 1, "group_size": 2, "max_response_tokens": 4, "sampler": SAMPLER}
    asking = {"max_response_tokens": 4, "sampler": SAMPLER}
    stages = [(train_sft, SftConfig, training), (train_grpo, GrpoConfig, grpo), (evaluate, EvaluateConfig, asking)]
    for number, (run, model, values) in enumerate(stages):
        output = tmp_path / f"refused-{number}"
        config = parse_config(settings(text_folder, tones, output, **values), model, source="test")
        with pytest.raises(EngineUsageError, match=r"\d\.flac is not UTF-8 text, .* `blind = true` to ask") as caught:
            run(config)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
        output = tmp_path / f"blind-{number}"
        config = parse_config(settings(text_folder, tones, output, blind=True, **values), model, source="test")
        assert run(config).questions["kept"] == 8


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", True),
        (b"3 + 1\n", True),
        ("naïve 🙂".encode() * 20_000, True),
        (b"\0\0\0 ftypisom", False),
        (b"\x89PNG\r\n", False),
        ("naïve".encode("utf-16"), False),
    ],
)
def test_a_text_is_told_by_its_bytes(tmp_path: Path, content: bytes, expected: bool):
    (tmp_path / "file").write_bytes(content)
    assert is_text(tmp_path / "file") is expected
