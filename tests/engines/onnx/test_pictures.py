"""Pictures of any mode and size become the numbers of the schema; the reference is numpy, and Pillow's resize."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from edgeai.engines.onnx.pictures import Pictures
from edgeai.engines.onnx.schema import Image
from edgeai.errors import UsageError

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (4, 6), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def image(channels: int = 1, height: int = 4, width: int = 6, **changes: Any) -> Image:
    found = {
        "resize": "bilinear",
        "scale": 1 / 255,
        "invert": False,
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
    }
    return Image(name="image", channels=channels, height=height, width=width, **{**found, **changes})


def read(item: Any, wanted: Image | None = None) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Return the array of one ITEM and the codes of its notices."""
    (batch,) = Pictures(wanted or image()).batches([item], 8)
    return batch.feed["image"][0], tuple(notice.code for notice in batch.notices[0])


def scaled(pixels: Any) -> Any:
    return (np.asarray(pixels, dtype=np.float64) / 255 - 0.5) / 0.25


@pytest.mark.parametrize("form", ["array", "list of one channel", "PIL", "png", "path"])
def test_a_grey_picture_is_scaled_however_it_is_given(tmp_path: Path, form: str) -> None:
    path = tmp_path / "é.png"
    PIL.Image.fromarray(GREY).save(path)
    item = {
        "array": GREY,
        "list of one channel": GREY[:, :, None],
        "PIL": PIL.Image.fromarray(GREY),
        "png": str(path),
        "path": path,
    }
    found, notices = read(item[form])
    assert (found.shape, found.dtype, notices) == ((1, 4, 6), np.float32, ())
    assert np.allclose(found[0], scaled(GREY), atol=1e-6)


def test_colours_have_their_own_mean_and_std_and_come_first() -> None:
    wanted = image(3, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    found, _ = read(COLOUR, wanted)
    for channel in range(3):
        reference = (COLOUR[:, :, channel] / 255 - wanted.mean[channel]) / wanted.std[channel]
        assert np.allclose(found[channel], reference, atol=1e-6)


def test_an_inverted_picture_is_one_minus_itself() -> None:
    found, _ = read(GREY, image(invert=True))
    assert np.allclose(found[0], (1 - GREY / 255 - 0.5) / 0.25, atol=1e-6)


def test_colours_become_grey_by_the_weights_of_itu_r_601() -> None:
    found, _ = read(COLOUR)
    reference = COLOUR.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(found[0] * 0.25 + 0.5 - reference / 255).max() < 1.01 / 255


def test_grey_becomes_three_equal_colours() -> None:
    found, _ = read(GREY, image(3))
    assert np.array_equal(found[0], found[1])
    assert np.allclose(found[2], scaled(GREY), atol=1e-6)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "box"])
def test_another_size_is_resized_as_the_schema_says(method: Any) -> None:
    found, _ = read(GREY, image(height=2, width=3, resize=method))
    reference = PIL.Image.fromarray(GREY).resize((3, 2), getattr(PIL.Image.Resampling, method.upper()))
    assert np.allclose(found[0], scaled(np.asarray(reference)), atol=1e-6)
    if method == "box":
        means = GREY.reshape(2, 2, 3, 2).mean(axis=(1, 3))
        assert np.abs(np.asarray(reference) - means).max() <= 1  # it rounds twice


def test_sixteen_bits_become_eight_by_proportion(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    for item in (deep, tmp_path / "deep.png", PIL.Image.fromarray(deep)):
        assert np.allclose(read(item)[0][0], scaled(GREY), atol=1e-6)


def test_what_can_be_seen_through_is_laid_on_white_and_said(tmp_path: Path) -> None:
    layered = np.dstack([COLOUR, np.full((4, 6), 255, np.uint8)])
    layered[0, 0] = (10, 20, 30, 0)
    layered[1, 1] = (0, 0, 0, 51)  # a fifth of black on white
    PIL.Image.fromarray(layered).save(tmp_path / "a.png")
    found, notices = read(tmp_path / "a.png", image(3))
    pixels = (found * 0.25 + 0.5) * 255
    assert notices == ("transparency",)
    assert np.allclose(pixels[:, 0, 0], 255, atol=1e-3)
    assert np.allclose(pixels[:, 1, 1], 204, atol=1.01)
    assert np.allclose(pixels[:, 2, 2], COLOUR[2, 2], atol=1e-3)


def test_an_alpha_channel_that_hides_nothing_is_not_worth_a_word() -> None:
    layered = np.dstack([COLOUR, np.full((4, 6), 255, np.uint8)])
    assert read(layered, image(3))[1] == ()


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_every_mode_is_read(mode: str) -> None:
    source = PIL.Image.fromarray(COLOUR).convert(mode)
    found, _ = read(source, image(3))
    reference = np.asarray(source.convert("RGB"))
    assert np.allclose(found, scaled(reference).transpose(2, 0, 1), atol=1e-6)


def test_a_palette_with_a_transparent_colour_is_laid_on_white(tmp_path: Path) -> None:
    source = PIL.Image.new("P", (6, 4), 0)
    source.putpalette([255, 0, 0, 0, 255, 0])
    source.putpixel((0, 0), 1)
    source.save(tmp_path / "p.gif", transparency=0)
    found, notices = read(tmp_path / "p.gif", image(3))
    assert notices == ("transparency",)
    assert np.allclose(found[:, 1, 1] * 0.25 + 0.5, 1, atol=1e-6)
    assert np.allclose(found[:, 0, 0] * 0.25 + 0.5, [0, 1, 0], atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    turns = [
        lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, np.transpose, lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a, 2).T, lambda a: np.rot90(a, 1),
    ]  # fmt: skip
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(GREY).save(tmp_path / "o.png", exif=exif)
    seen = turns[orientation - 1](GREY)
    found, _ = read(tmp_path / "o.png", image(height=seen.shape[0], width=seen.shape[1]))
    assert np.allclose(found[0], scaled(seen), atol=1e-6)


def test_of_an_animation_the_first_picture_is_taken_and_said(tmp_path: Path) -> None:
    frames = [PIL.Image.new("L", (6, 4), level) for level in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found, notices = read(tmp_path / "a.gif")
    assert notices == ("first-frame",)
    assert np.allclose(found, -2, atol=1e-6)


def bomb(path: Path, width: int, height: int) -> Path:
    """Write a PNG that says to have WIDTH × HEIGHT pixels and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, side: int) -> None:
    with pytest.raises(UsageError, match="Pillow's limit"):
        read(bomb(tmp_path / "b.png", side, side))


def test_the_limit_bites_for_pictures_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", GREY.size)
    read(GREY)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", GREY.size - 1)
    with pytest.raises(UsageError, match="limit"):
        read(GREY)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    (tmp_path / "e.png").write_bytes(b"")
    PIL.Image.fromarray(GREY).save(tmp_path / "g.png")
    whole = (tmp_path / "g.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, said in (
        ("t.png", "not a picture"),
        ("e.png", "not a picture"),
        ("cut.png", "picture"),
        ("no.png", "not there"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(UsageError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (GREY / 255.0, "range"), (GREY.astype(np.int32) - 300, "0 to 255"), (GREY[0], "shape"), (GREY[None, None], "shape"),
        (np.zeros((4, 6, 2), np.uint8), "shape"), (np.zeros((0, 6), np.uint8), "shape"), (None, "not a picture"), (3, "not a picture"),
        (PIL.Image.fromarray(GREY / np.float32(255)), "floating point"),
    ],
)  # fmt: skip
def test_arrays_whose_meaning_is_not_plain_are_refused(item: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(item)


def test_whole_numbers_within_a_byte_and_booleans_are_taken() -> None:
    assert np.allclose(read(GREY.astype(np.int64))[0][0], scaled(GREY), atol=1e-6)
    assert np.allclose(read(GREY > 100)[0][0], scaled((GREY > 100) * 255), atol=1e-6)


def test_a_missing_picture_is_said_before_any_is_computed(tmp_path: Path) -> None:
    batches = Pictures(image()).batches([GREY, GREY, str(tmp_path / "no.png")], 1)
    with pytest.raises(UsageError, match=r"no\.png"):
        next(batches)


def test_the_short_way_gives_the_same_to_the_bit() -> None:
    reader = Pictures(image())
    into = np.zeros((1, 1, 4, 6), np.float32)
    fill = reader.filler(into)
    assert fill(GREY)
    assert np.array_equal(into[0], read(GREY)[0])
    for other in (GREY.astype(np.int64), GREY[:2], GREY.tolist(), COLOUR):
        assert not fill(other)
    colours = np.zeros((1, 3, 4, 6), np.float32)
    wanted = image(3, mean=(0.1, 0.2, 0.3))
    assert Pictures(wanted).filler(colours)(COLOUR)
    assert np.array_equal(colours[0], read(COLOUR, wanted)[0])
    assert not Pictures(wanted).filler(colours)(GREY)
