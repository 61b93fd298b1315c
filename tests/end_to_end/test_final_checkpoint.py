"""The checkpoint at the end of a quickstart is an ordinary one: transformers and vLLM's server can use it.

The answers of such a small model are meaningless; what counts is that an unchanged tool loads the folder, reads a real
video file and generates tokens.
"""

import base64
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from longvideo_reason_data.media.video_file import VideoFile, sample_frames

TINY_RECIPE = Path(__file__).parents[2] / "apps" / "tests" / "tiny_quickstart.toml"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart")
    command = [str(BIN / "longrl"), "quickstart", "--output", str(output), "--recipe", str(TINY_RECIPE)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return output


@pytest.fixture(scope="module")
def video(quickstart):
    return sorted((quickstart / "dataset" / "videos").glob("*.mp4"))[0]


@pytest.mark.slow
def test_transformers_answers_a_question_about_a_video(quickstart, video):
    folder = quickstart / "grpo" / "model"
    processor = AutoProcessor.from_pretrained(folder)
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    file = VideoFile.open(video)
    frames = torch.from_numpy(file.read(sample_frames(file, num_frames=4))).permute(0, 3, 1, 2)
    content = [{"type": "video"}, {"type": "text", "text": "Who is seen first?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], videos=[frames], do_sample_frames=False, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 8


@pytest.fixture(scope="module")
def server(quickstart, serve, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serve(quickstart / "grpo" / "model", "quickstart", max_model_len=2048, log=log) as address:
        yield address


@pytest.mark.long
def test_vllm_serve_answers_a_question_about_a_video(server, video):
    encoded = base64.b64encode(video.read_bytes()).decode()
    content = [
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded}"}},
        {"type": "text", "text": "Who is seen first?"},
    ]
    body = {"model": "quickstart", "messages": [{"role": "user", "content": content}], "max_tokens": 8, "min_tokens": 8}
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        answer = json.load(reply)
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["prompt_tokens"] > 20  # the video's tokens are among them
    assert answer["choices"][0]["finish_reason"] in {"length", "stop"}
