"""What a build says it will ask, against what a server that counts for itself is asked; and building again."""

import base64
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longvideo_reason_data.cli import main
from longvideo_reason_data.records.folder import read_dataset

MakeVideo = Callable[..., Path]
LONG_CAPTION = " ".join(["The figure walks along the wall, looks at the door and turns around."] * 5)


@pytest.fixture
def films(make_video: MakeVideo, tmp_path: Path) -> Path:
    for number in range(2):
        make_video(f"films/film {number}.mp4", num_frames=75, first_number=100 * number, width=320, height=192)
    return tmp_path / "films"


def count_tokens(body: dict[str, Any], words: str) -> tuple[int, int]:
    """Count as a server of a Qwen model does: patches of 28 pixels, and about as many tokens as words and marks."""
    read = 20
    for part in body["messages"][-1]["content"]:
        if part["type"] == "text":
            read += len(re.findall(r"\w{1,7}|[^\w\s]", part["text"]))
        else:
            image = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
            read += math.ceil(image.width / 28) * math.ceil(image.height / 28)
    return read, len(re.findall(r"\w{1,7}|[^\w\s]", words))


def arguments(server: Any, films: Path, output: Path, *more: str) -> list[str]:
    wide = ("--filters.num-full-frames", "16", "--filters.num-samples", "2", "--window-seconds", "1")
    fast = ("--first-wait-seconds", "0.01", "--prompt-price", "1", "--completion-price", "2")
    place = ("build", "--videos", str(films), "--output", str(output), "--base-url", server.base_url)
    return [*place, "--model", "model", *wide, *fast, *more]


def read_estimate(said: str) -> tuple[int, float]:
    """Calls and tokens read, of the line for all."""
    line = next(line for line in said.splitlines() if line.startswith("  all"))
    calls, tokens = re.findall(r"([\d,]+) calls +([\d.]+) M", line)[0]
    return int(calls.replace(",", "")), 1e6 * float(tokens)


@pytest.mark.slow
def test_an_estimate_is_near_what_a_build_asks_and_asks_nothing_itself(
    server: Any, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = server.reply
    server.count_tokens = count_tokens

    def reply(body: dict[str, Any]) -> str:
        said = scripted(body)
        return f"{said} {LONG_CAPTION}" if said.startswith("A figure") else said

    server.reply = reply
    output = tmp_path / "dataset"
    assert main(arguments(server, films, output, "--estimate")) == 0
    only = capsys.readouterr().out
    assert server.bodies == []
    assert not output.exists()
    assert main(arguments(server, films, output)) == 0
    said = capsys.readouterr().out
    assert only in said
    assert said.index("estimate:") < said.index("filtered:")
    calls, tokens = read_estimate(only)
    assert calls == len(server.bodies)
    assert 0.7 < tokens / server.reported.read < 1.3
    assert "cost" in only


def test_another_dataset_is_never_made_of_one_that_is_there_unasked(
    server: Any, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "dataset"
    plain = ("--filter", "none")
    assert main(arguments(server, films, output, *plain)) == 0
    before = (output / "records.parquet").read_bytes()
    num_asked = len(server.bodies)
    capsys.readouterr()
    for change, words in (
        (("--captions.num-frames", "2"), "captions.num_frames was 4 and is now 2"),
        (("--seed", "3"), "seed was 0 and is now 3"),
        (("--captioner", "seer"), 'models.captioner was "model" and is now "seer"'),
    ):
        assert main(arguments(server, films, output, *plain, *change)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert "--replace" in line
    assert (output / "records.parquet").read_bytes() == before
    assert len(server.bodies) == num_asked
    assert main(arguments(server, films, output, *plain, "--seed", "3", "--replace", "--num-parallel", "2")) == 0
    assert len(server.bodies) == num_asked  # other splits and letters of the same questions
    assert json.loads((output / "manifest.json").read_text())["settings"]["seed"] == 3


def test_videos_that_are_added_move_no_other(server: Any, films: Path, tmp_path: Path, make_video: MakeVideo) -> None:
    output = tmp_path / "dataset"
    assert main(arguments(server, films, output, "--filter", "none")) == 0
    before = {record.media[0].digest: record.split for record in read_dataset(output)}
    for number in range(2):
        make_video(f"films/added {number}.mp4", num_frames=60, first_number=2000 + 100 * number)
    assert main(arguments(server, films, output, "--filter", "none")) == 0
    after = {record.media[0].digest: record.split for record in read_dataset(output)}
    assert len(after) == 4
    assert {digest: after[digest] for digest in before} == before
