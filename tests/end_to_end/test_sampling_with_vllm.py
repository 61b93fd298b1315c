"""vLLM's own server takes what isn't said about sampling from the checkpoint's generation_config.json; ours is said."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.language_model.requests import Request

NUM_SAMPLES = 8


def ask_plainly(address: str, seed: int) -> str:
    """Ask as a client would that says nothing about sampling but the temperature."""
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Go."}], "max_tokens": 16}
    content = json.dumps({**body, "temperature": 1.0, "seed": seed}).encode()
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", content, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


async def ask_ours(base_url: str, cache: ResponseCache) -> list[str]:
    async with LanguageModel(base_url, cache) as model:
        requests = [
            Request(model="tiny", parts=("Go.",), max_tokens=16, temperature=1.0, sample_index=number)
            for number in range(1, NUM_SAMPLES + 1)
        ]
        return [reply.text for reply in await asyncio.gather(*map(model.ask, requests))]


@pytest.mark.long
def test_the_samples_of_a_question_differ_whatever_the_checkpoint_says(
    serve: Callable[..., AbstractContextManager[str]], tmp_path: Path
) -> None:
    command = [Path(sys.executable).parent / "longrl", "tiny-model", "--output", tmp_path / "tiny", "--num-layers", "2"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    greedy = {"top_k": 1, "top_p": 0.1, "min_p": 0.9, "repetition_penalty": 1.5}
    (tmp_path / "tiny" / "generation_config.json").write_text(json.dumps(greedy))
    with (
        serve(tmp_path / "tiny", "tiny", max_model_len=1024, log=tmp_path / "log.txt") as address,
        ResponseCache(tmp_path / "responses.jsonl") as cache,
    ):
        plain = {ask_plainly(address, seed) for seed in range(1, NUM_SAMPLES + 1)}
        ours = asyncio.run(ask_ours(f"{address}/v1", cache))
        assert len(plain) == 1, "the checkpoint's own sampling isn't applied any more"
        assert len(set(ours)) == NUM_SAMPLES
        assert cache.adaptations() == {}
        assert cache.sampling()["tiny"]["top_k=-1"] == NUM_SAMPLES
