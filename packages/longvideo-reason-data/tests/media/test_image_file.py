"""Still pictures are read upright and whole, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.fingerprints import find_same_footage, fingerprint_video
from longvideo_reason_data.media.image_file import ImageFile
from longvideo_reason_data.media.video_file import digest_file, sample_frames

SIZE = (40, 24)  # width, height


def gradient() -> Image.Image:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([columns * 6, rows * 10, 255 - columns * 6], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_picture_is_a_video_of_one_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    gradient().save(path)
    image = ImageFile.open(path)
    assert (image.width, image.height, image.frame_count, image.duration_seconds) == (*SIZE, 1, 0.0)
    assert image.content_digest == digest_file(path)
    assert sample_frames(image, num_frames=8) == (0,)
    frames = image.read([0, 0])
    assert frames.shape == (2, SIZE[1], SIZE[0], 3)
    assert np.abs(frames[1].astype(int) - np.asarray(gradient())).mean() < 6
    assert [place for place, _ in image.frames([0])] == [0]
    with pytest.raises(DataError, match="frame 1 of an image"):
        image.read([0, 1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_stands_upright(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "photograph.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # methods of `transpose` that undo each orientation
    stored = gradient().transpose(Image.Transpose(inverse[orientation])) if orientation > 1 else gradient()
    stored.save(path, exif=exif)
    image = ImageFile.open(path)
    assert (image.width, image.height) == SIZE
    np.testing.assert_array_equal(image.read([0])[0], np.asarray(gradient()))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_other_kinds_of_pixels_become_rgb_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    source = gradient().convert(mode)
    if mode in ("LA", "RGBA"):
        source.putalpha(0)
    source.save(path)
    pixels = ImageFile.open(path).read([0])[0]
    assert pixels.shape == (SIZE[1], SIZE[0], 3)
    if mode in ("LA", "RGBA"):
        assert (pixels == 255).all()


def test_a_photograph_with_a_second_picture_shows_the_first(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    gradient().save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    image = ImageFile.open(path)
    assert (image.width, image.height) == SIZE
    assert np.abs(image.read([0])[0].astype(int) - np.asarray(gradient())).mean() < 6


def test_what_is_no_still_picture_is_refused_in_one_line(tmp_path: Path, make_video: Any) -> None:
    moving = tmp_path / "moving.webp"
    gradient().save(moving, save_all=True, append_images=[Image.new("RGB", SIZE, "red")], duration=100)
    fine = tmp_path / "fine.png"
    Image.fromarray(np.asarray(gradient().convert("L"), dtype=np.uint16) * 256).save(fine)
    drawing = tmp_path / "drawing.png"
    gradient().save(drawing, format="PDF")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    for path, words in (
        (moving, "it is animated"),
        (fine, "expected 8 bits"),
        (drawing, "not an image"),
        (empty, "not an image"),
        (make_video("video.png.mp4", num_frames=3), "not an image"),
    ):
        with pytest.raises(DataError, match=words) as raised:
            ImageFile.open(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(UsageError, match="expected an image"):
            ImageFile.open(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_cut_picture_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = ImageFile.open(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="too damaged to be read"):
        ImageFile.open(path)
    with pytest.raises(DataError, match="can't be decoded"):
        whole.read([0])


def test_a_picture_is_recognised_in_another_format_and_size(tmp_path: Path) -> None:
    names = {"one": "a.png", "other": "b.jpg", "turned": "c.png"}
    gradient().save(tmp_path / "a.png")
    gradient().resize((80, 48)).save(tmp_path / "b.jpg", quality=60)
    gradient().transpose(Image.Transpose.ROTATE_180).save(tmp_path / "c.png")
    prints = {name: fingerprint_video(ImageFile.open(tmp_path / path)) for name, path in names.items()}
    assert find_same_footage(prints) == {"other": "one"}
