"""A dataset's filters use the decoder that it was built with, which is never replaced by another."""

import base64
import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.filtering.by_answers import FilterModels
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.media.decoders.base import DecoderName, decoder_version
from longvideo_reason_data.media.video_file import VideoFile, sample_frames
from longvideo_reason_data.pipeline.build import build
from longvideo_reason_data.pipeline.filter import filter_folder
from longvideo_reason_data.records.pass_rates import Condition

MakeVideo = Callable[..., Path]
FILTERS = FilterSettings(conditions=(Condition.FULL,), num_samples=1, num_full_frames=3)


@pytest.fixture(params=["decord", "torchcodec"])
def decoder(request: pytest.FixtureRequest) -> DecoderName:
    try:
        decoder_version(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    return DecoderName(request.param)


def filtered(server: Any, dataset: Path) -> dict[str, Any]:
    return filter_folder(dataset, base_url=server.base_url, models=FilterModels(answerer="seer"), settings=FILTERS)


def test_the_filters_see_through_the_decoder_of_the_dataset(
    server: Any, make_video: MakeVideo, tmp_path: Path, decoder: DecoderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, dataset = make_video("films/film.mp4"), tmp_path / "dataset"
    settings = BuildSettings(window_seconds=1.0, decoder=decoder)
    build([path], dataset, base_url=server.base_url, model="model", settings=settings)
    asked = len(server.bodies)
    manifest = filtered(server, dataset)
    assert manifest["filter"]["tools"]["decoder"] == manifest["tools"]["decoder"] == decoder_version(decoder)

    video = VideoFile.open(path, decoder=decoder)
    seen = [[url for url in map(url_of, body["messages"][-1]["content"]) if url] for body in server.bodies[asked:]]
    assert len(seen) == 4
    for urls in seen:
        for url, frame in zip(urls, video.read(sample_frames(video, num_frames=3)), strict=True):
            assert np.array_equal(decoded(url), jpeg_of(frame))

    monkeypatch.setitem(sys.modules, decoder, None)  # as where it isn't installed
    for work in (lambda: filtered(server, dataset), lambda: check_dataset(dataset)):
        with pytest.raises(UsageError, match=rf"decoder {decoder} can't be loaded .*\[{decoder}\]"):
            work()
    assert len(server.bodies) == asked + 4

    manifest["settings"]["decoder"] = "opencv"
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"manifest.json: decoder is 'opencv', expected one of pyav, decord"):
        filtered(server, dataset)


def url_of(part: dict[str, Any]) -> str | None:
    return part["image_url"]["url"] if part["type"] == "image_url" else None


def decoded(url: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))))


def jpeg_of(frame: np.ndarray) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=FILTERS.jpeg_quality)
    return np.asarray(Image.open(buffer))
