"""lmms-eval runs one of its own tasks on a tiny checkpoint, through its command line, offline."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from lmms_eval_longrl.media import PictureFrames, TaskVideo
from lmms_eval_longrl.model import LongRlModel, _cut
from PIL import Image

from mrsp_engine.errors import EngineUsageError, UnreadableMediumError
from mrsp_engine.tiny.families import build_tiny

FRAMES, RATE = 24, 12


def write_video(path: Path, seed: int) -> list[np.ndarray]:
    """Frames of one brightness each, so that a frame is recognised after compression."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).permutation(FRAMES) * 10
    pictures = [np.full((64, 96, 3), level, dtype=np.uint8) for level in levels]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"bf": "2", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return pictures


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, and Video-MME as its task expects it: a table, and the videos in the cache."""
    folder = tmp_path_factory.mktemp("home")
    build_tiny("qwen2_5_vl", folder / "model")
    rows: list[dict[str, Any]] = []
    for number in range(2):
        write_video(folder / f"videomme/data/film{number}.mp4", number)
        rows += [
            {
                "video_id": f"{number}",
                "videoID": f"film{number}",
                "question_id": f"{number}-{place}",
                "duration": "short",
                "domain": "Knowledge",
                "sub_category": "Humanity & History",
                "task_type": "Counting Problem",
                "question": f"How many shapes are there in part {place}?",
                "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
                "answer": "ABCD"[place],
            }
            for place in range(2)
        ]
    Dataset.from_list(rows).to_parquet(str(folder / "test.parquet"))
    task = files("lmms_eval") / "tasks/videomme/videomme.yaml"
    (folder / "tasks").mkdir()
    (folder / "tasks/local.yaml").write_text(
        f"include: {task}\ntask: videomme_local\ndataset_path: parquet\n"
        f"dataset_kwargs:\n  data_files:\n    test: {folder / 'test.parquet'}\n"
    )
    return folder


def evaluate(home: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmms_eval", "--model", "longrl", "--include_path", str(home / "tasks")]
    command += ["--tasks", "videomme_local", "--output_path", str(output), "--log_samples", *arguments]
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False, timeout=300)


def test_a_task_is_evaluated_and_each_video_encoded_once(home: Path, tmp_path: Path) -> None:
    settings = f"pretrained={home / 'model'},num_frames=8,dtype=float32,store={tmp_path / 'embeddings'}"
    done = evaluate(home, tmp_path / "results", "--model_args", settings)
    assert done.returncode == 0, done.stderr[-2000:]
    [results] = tmp_path.rglob("*_results.json")
    scores = json.loads(results.read_text())["results"]["videomme_local"]
    assert 0 <= scores["videomme_perception_score,none"] <= 100
    [samples] = tmp_path.rglob("*samples_videomme_local.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert len(answers) == 4
    stored = list((tmp_path / "embeddings").rglob("*.safetensors"))
    assert len(stored) == 2  # two questions about each video


def test_a_wrong_setting_is_named(home: Path, tmp_path: Path) -> None:
    for wrong, words in (("num_frames=0", "num_frames=0: expected 1 or more"), ("frames=8", "frames: not settings")):
        with pytest.raises(EngineUsageError, match=words):
            LongRlModel.create_from_arg_string(f"pretrained={home / 'model'},store={tmp_path},{wrong}")
    with pytest.raises(EngineUsageError, match="engine='sglang': expected one of transformers, vllm"):
        LongRlModel(str(home / "model"), engine="sglang")


def test_the_likelihood_of_what_greedy_decoding_gives(home: Path, tmp_path: Path) -> None:
    model = LongRlModel(str(home / "model"), num_frames=4, dtype="float32", store=str(tmp_path / "embeddings"))
    film = str(home / "videomme/data/film0.mp4")
    model.task_dict = {"task": {"test": {0: [film], 1: [Image.new("RGB", (64, 64), "red")]}}}

    class Request:
        def __init__(self, *args: Any) -> None:
            self.args = args

    def show(doc: Any) -> Any:
        return doc

    settings = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, "num_beams": 1}
    for doc in (0, 1):
        (answer,) = model.generate_until([Request("Which?", settings, show, doc, "task", "test")])
        tokens = model._policy.tokenizer.encode(answer, add_special_tokens=False)
        asked = Request("Which?", answer, show, doc, "task", "test")
        ((own, is_greedy),) = model.loglikelihood([asked])
        ((other, is_other_greedy),) = model.loglikelihood([Request("Which?", "zzz", show, doc, "task", "test")])
        assert own < 0
        assert not is_other_greedy
        if len(tokens) == 5:  # the text of tokens may be written with other tokens
            assert is_greedy
            assert own / 5 > other
    with pytest.raises(EngineUsageError, match="num_beams=4: expected 1"):
        model.generate_until([Request("Which?", settings | {"num_beams": 4}, show, 0, "task", "test")])
    assert _cut("yes. no. maybe", [" maybe", ". "]) == "yes"


def test_any_frame_is_the_right_one(tmp_path: Path) -> None:
    pictures = write_video(tmp_path / "film.mp4", 3)
    video = TaskVideo(tmp_path / "film.mp4")
    assert video.frame_count == FRAMES
    np.testing.assert_allclose(video.timestamps, np.arange(FRAMES) / RATE, atol=1e-6)
    asked = [17, 3, 3, 22]
    found = video.read(asked)
    assert found.shape == (4, 64, 96, 3)
    for frame, index in zip(found, asked, strict=True):
        assert abs(float(frame.mean()) - float(pictures[index].mean())) < 4
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UnreadableMediumError, match="not a video"):
        TaskVideo(tmp_path / "text.mp4")
    picture = PictureFrames(Image.new("RGB", (30, 20), "blue"))
    assert picture.read([0])[0, 5, 5].tolist() == [0, 0, 255]
    assert torch.from_numpy(picture.read([0, 0])).shape == (2, 20, 30, 3)
