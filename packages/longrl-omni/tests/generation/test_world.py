"""The world of pictures: its grammar, its drawings and its checker."""

import random

import pytest
import torch

from longrl_omni.generation.pictures.captions import VOCABULARY, Colour, PictureCaption, draw_caption, parse_caption
from longrl_omni.generation.pictures.checker import (
    AccuracyReward,
    CheckerReward,
    LikenessReward,
    check,
    find_things,
    measure_likeness,
)
from longrl_omni.generation.pictures.drawing import EDGE, GROUND, THING, draw, paint
from longrl_omni.generation.pictures.model import PicturesPolicy, encode_pictures
from longrl_omni.generation.rewards.base import PictureRequest
from longrl_trainer.errors import TrainerUsageError

TEXT = "two red circles left of one blue square"


@pytest.fixture(scope="module")
def captions() -> list[PictureCaption]:
    source = random.Random(1)
    return [draw_caption(source) for _ in range(200)]


def test_captions_are_read_as_they_are_written(captions: list[PictureCaption]) -> None:
    assert all(parse_caption(caption.text) == caption for caption in captions)
    assert all(set(caption.words) <= set(VOCABULARY) for caption in captions)
    assert parse_caption(TEXT).text == TEXT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two red circles",
        "two red circle left of one blue square",
        "two red circles left of one red square",
        "four red circles left of one blue square",
        "two red circles right of one blue square",
        f"{TEXT} {TEXT}",
    ],
)
def test_anything_else_is_no_caption(text: str) -> None:
    with pytest.raises(TrainerUsageError, match="is none of the world of pictures"):
        parse_caption(text)


def test_the_checker_agrees_with_every_drawing_also_after_the_codec(captions: list[PictureCaption]) -> None:
    source = random.Random(2)
    drawn = torch.stack([draw(caption, source) for caption in captions])
    decoded = PicturesPolicy.decode(PicturesPolicy.__new__(PicturesPolicy), encode_pictures(drawn))
    for pictures, least_likeness in ((drawn, 0.999), (decoded, 0.7)):
        findings = find_things(pictures)
        assert all(check(finding, caption).is_right for finding, caption in zip(findings, captions, strict=True))
        likenesses = map(measure_likeness, pictures, findings, captions)
        assert min(likenesses) > least_likeness


def test_every_part_of_a_caption_is_checked() -> None:
    caption = parse_caption(TEXT)
    picture = torch.full((3, EDGE, EDGE), GROUND)
    paint(picture, (2, 2), caption.first.shape, Colour.RED)
    paint(picture, (10, 2), caption.first.shape, Colour.RED)
    paint(picture, (2, 18), caption.second.shape, Colour.BLUE)
    (finding,) = find_things(picture[None])
    assert finding.describe() == "2 red, 1 blue"
    assert check(finding, caption).is_right
    for other, is_first, is_second, is_alone, is_placed in (
        ("one red circle left of one blue square", False, True, True, True),
        ("two red circles left of two blue squares", True, False, True, True),
        ("one blue square left of two red circles", True, True, True, False),
        ("two red circles left of one green square", True, False, False, False),
        ("two red squares left of one blue circle", True, True, True, True),
    ):
        verdict = check(finding, parse_caption(other))
        found = verdict.has_first, verdict.has_second, verdict.has_nothing_else, verdict.is_placed
        assert found == (is_first, is_second, is_alone, is_placed), other
        assert verdict.score == sum(found) / 4


def test_blots_and_specks() -> None:
    picture = torch.full((3, EDGE, EDGE), GROUND)
    picture[:, 0, :3] = torch.tensor([0.9, 0.15, 0.15])[:, None]  # a speck
    picture[:, 4 : 4 + 2 * THING, 2 : 2 + THING] = torch.tensor([0.2, 0.35, 0.95])[:, None, None]  # a blot
    (finding,) = find_things(picture[None])
    assert finding.num_faults == 1
    assert finding.describe() == "1 faults"


def test_likeness_sees_the_shapes_and_the_ground_that_the_checker_does_not() -> None:
    caption = parse_caption(TEXT)
    right = draw(caption, random.Random(0))
    squares = draw(parse_caption(TEXT.replace("circles", "squares")), random.Random(0))
    dirty = (right + 0.1 * torch.rand(right.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    requests = [PictureRequest(prompt=TEXT, picture=picture) for picture in (right, squares, dirty)]
    assert [result.value for result in CheckerReward().judge(requests)] == [1.0, 1.0, 1.0]
    assert [result.value for result in AccuracyReward().judge(requests)] == [1.0, 1.0, 1.0]
    clean, with_squares, with_dirt = (result.value or 0.0 for result in LikenessReward().judge(requests))
    assert clean == pytest.approx(1.0)
    assert with_squares < 0.9
    assert with_dirt < 0.9
    empty = PictureRequest(prompt=TEXT, picture=torch.full((3, EDGE, EDGE), GROUND))
    assert [result.value for result in LikenessReward().judge([empty])] == [0.0]


def test_pictures_of_another_size_are_refused() -> None:
    request = PictureRequest(prompt=TEXT, picture=torch.zeros(3, 8, 8))
    with pytest.raises(TrainerUsageError, match="has the shape"):
        CheckerReward().judge([request])
