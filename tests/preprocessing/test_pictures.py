"""Pictures of every kind that shops have, and every kind of broken one."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from item.catalog.listing import Picture
from item.errors import PictureError
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.pictures import load_picture, read_picture, to_square

CONFIG = PreprocessorConfig(picture_size=64)
RED, BLUE, WHITE, GREEN = (208, 32, 32), (32, 32, 208), (255, 255, 255), (0, 128, 0)


def halves(width: int = 96, height: int = 64, left: Any = RED, right: Any = BLUE, mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (width, height), right)
    image.paste(left, (0, 0, width // 2, height))
    return image


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def square(data: bytes, config: PreprocessorConfig = CONFIG) -> npt.NDArray[np.uint8]:
    return to_square(load_picture(Picture(data=data), config), config)


def colour(pixels: npt.NDArray[np.uint8], x: float, y: float) -> tuple[int, ...]:
    """The colour at a place given in shares of width and height."""
    size = pixels.shape[1]
    return tuple(int(value) for value in pixels[:, int(y * size), int(x * size)])


def assert_near(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 12) -> None:
    assert np.abs(np.subtract(found, expected)).max() <= tolerance, (found, expected)


def transparent_palette() -> Image.Image:
    """Red and fully transparent halves, the transparency as one palette index."""
    image = Image.new("P", (96, 64), 1)
    image.putpalette([*RED, *BLUE])
    image.paste(0, (0, 0, 48, 64))
    return image


def png_16_bit_colour(width: int = 96, height: int = 64) -> bytes:
    """Pillow cannot write PNG with 16 bits a channel, so by hand."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    left = b"".join(struct.pack(">H", value * 257) for value in RED)
    right = b"".join(struct.pack(">H", value * 257) for value in BLUE)
    row = b"\0" + left * (width // 2) + right * (width // 2)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * height))
        + chunk(b"IEND", b"")
    )


def with_alpha() -> Image.Image:
    return halves(left=(*RED, 255), right=(*BLUE, 0), mode="RGBA")


def grey_16() -> Image.Image:
    values = np.full((64, 96), 250 * 257, np.uint16)
    values[:, :48] = 50 * 257
    return Image.fromarray(values)


COLOURED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(halves(), "JPEG", quality=95),
    "jpeg progressive": lambda: encoded(halves(), "JPEG", progressive=True, quality=95),
    "jpeg cmyk": lambda: encoded(halves().convert("CMYK"), "JPEG", quality=95),
    "jpeg of several pictures": lambda: encoded(halves(), "MPO", save_all=True, append_images=[halves(left=GREEN)]),
    "png": lambda: encoded(halves(), "PNG"),
    "png palette": lambda: encoded(halves().quantize(8), "PNG"),
    "png 16 bit": png_16_bit_colour,
    "png animated": lambda: encoded(halves(), "PNG", save_all=True, append_images=[halves(left=GREEN)]),
    "webp": lambda: encoded(halves(), "WEBP", quality=95),
    "webp lossless": lambda: encoded(halves(), "WEBP", lossless=True),
    "webp animated": lambda: encoded(
        halves(), "WEBP", save_all=True, append_images=[halves(left=GREEN)], lossless=True
    ),
    "gif": lambda: encoded(halves(), "GIF"),
    "gif animated": lambda: encoded(halves(), "GIF", save_all=True, append_images=[halves(left=GREEN)]),
    "bmp": lambda: encoded(halves(), "BMP"),
    "tiff": lambda: encoded(halves(), "TIFF"),
    "tiff lzw": lambda: encoded(halves(), "TIFF", compression="tiff_lzw"),
    "tiff cmyk": lambda: encoded(halves().convert("CMYK"), "TIFF"),
    "tiff of two pages": lambda: encoded(halves(), "TIFF", save_all=True, append_images=[halves(left=GREEN)]),
}
TRANSPARENT: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(with_alpha(), "PNG"),
    "png palette, one index": lambda: encoded(transparent_palette(), "PNG", transparency=1),
    "png palette, a table": lambda: encoded(transparent_palette(), "PNG", transparency=bytes([255, 0])),
    "png one colour": lambda: encoded(halves(), "PNG", transparency=BLUE),
    "webp": lambda: encoded(with_alpha(), "WEBP", lossless=True),
    "gif": lambda: encoded(transparent_palette(), "GIF", transparency=1),
    "tiff": lambda: encoded(with_alpha(), "TIFF"),
}
GREY: dict[str, tuple[Callable[[], bytes], int, int]] = {
    "jpeg": (lambda: encoded(halves(left=50, right=250, mode="L"), "JPEG"), 50, 250),
    "png": (lambda: encoded(halves(left=50, right=250, mode="L"), "PNG"), 50, 250),
    "png 1 bit": (lambda: encoded(halves(left=0, right=1, mode="1"), "PNG"), 0, 255),
    "png grey and alpha": (lambda: encoded(halves(left=(50, 255), right=(0, 0), mode="LA"), "PNG"), 50, 255),
    "png 16 bit": (lambda: encoded(grey_16(), "PNG"), 50, 250),
    "tiff 16 bit": (lambda: encoded(grey_16(), "TIFF"), 50, 250),
    "tiff 32 bit of 16": (lambda: encoded(grey_16().convert("I"), "TIFF"), 50, 250),
    "tiff 1 bit, fax": (lambda: encoded(halves(left=0, right=1, mode="1"), "TIFF", compression="group4"), 0, 255),
}


@pytest.mark.parametrize("kind", COLOURED)
def test_colours_survive_every_format_and_the_first_frame_is_taken(kind: str) -> None:
    pixels = square(COLOURED[kind]())
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == np.uint8
    assert_near(colour(pixels, 0.2, 0.5), RED)
    assert_near(colour(pixels, 0.8, 0.5), BLUE)
    assert colour(pixels, 0.5, 0.02) == colour(pixels, 0.5, 0.98) == WHITE  # 96 x 64: bars above and below


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pixels_show_the_background(kind: str) -> None:
    pixels = square(TRANSPARENT[kind](), PreprocessorConfig(picture_size=64, background=GREEN))
    assert_near(colour(pixels, 0.2, 0.5), RED)
    assert_near(colour(pixels, 0.8, 0.5), GREEN)
    assert colour(pixels, 0.5, 0.02) == GREEN


def test_half_transparent_pixels_are_blended() -> None:
    pixels = square(encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), "PNG"))
    assert_near(colour(pixels, 0.5, 0.5), (127, 127, 127), 1)


@pytest.mark.parametrize("kind", GREY)
def test_grey_levels(kind: str) -> None:
    make, left, right = GREY[kind]
    pixels = square(make())
    assert_near(colour(pixels, 0.2, 0.5), (left,) * 3, 3)
    assert_near(colour(pixels, 0.8, 0.5), (right,) * 3, 3)


def test_16_bits_are_scaled_as_real_numbers_are() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(load_picture(Picture(data=encoded(Image.fromarray(values), "PNG")), CONFIG))[:, :, 0]
    expected = np.rint(values.astype(np.float64) * 255 / 65535)
    assert np.array_equal(found, expected)


def stored_with_orientation(orientation: int, width: int, height: int) -> Image.Image:
    """A picture that is red, green, blue, black by quarters once it is turned as EXIF's table says."""
    upright = Image.new("RGB", (width, height))
    for place, quarter in {(0, 0): RED, (1, 0): GREEN, (0, 1): BLUE, (1, 1): (0, 0, 0)}.items():
        x, y = place[0] * width // 2, place[1] * height // 2
        upright.paste(quarter, (x, y, x + width // 2, y + height // 2))
    pixels = np.asarray(upright)
    # EXIF 2.3, orientation: which side of the picture the stored row 0 and column 0 are
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),  # row 0 is the left side, column 0 the top
        6: pixels.transpose(1, 0, 2)[::-1],  # row 0 is the right side, column 0 the top
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],  # row 0 is the right side, column 0 the bottom
        8: pixels.transpose(1, 0, 2)[:, ::-1],  # row 0 is the left side, column 0 the bottom
    }[orientation]
    # 6: the stored row 0 is shown on the right: columns of the picture from right to left
    return Image.fromarray(np.ascontiguousarray(stored))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_also_of_a_picture_shrunk_while_decoding(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(stored_with_orientation(orientation, 640, 320), file_format, exif=exif)
    image = load_picture(Picture(data=data), CONFIG)
    assert image.size == ((160, 80) if file_format == "JPEG" else (640, 320))
    pixels = to_square(image, CONFIG)
    for (x, y), expected in {(0.25, 0.4): RED, (0.75, 0.4): GREEN, (0.25, 0.6): BLUE, (0.75, 0.6): (0, 0, 0)}.items():
        assert_near(colour(pixels, x, y), expected)


def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    data = encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01", quality=95)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_near(colour(square(data), 0.2, 0.5), RED)
    assert not caught


@settings(max_examples=60)
@given(width=st.integers(1, 700), height=st.integers(1, 700), size=st.integers(1, 200))
def test_a_jpeg_is_never_decoded_below_the_target_size_and_never_squashed(width: int, height: int, size: int) -> None:
    config = PreprocessorConfig(picture_size=size)
    image = load_picture(Picture(data=encoded(Image.new("RGB", (width, height), RED), "JPEG")), config)
    assert max(image.size) >= min(size, max(width, height))
    assert min(image.size) >= 1
    pixels = to_square(image, config)
    painted = (np.abs(pixels.astype(int) - np.array(RED)[:, None, None]).max(axis=0) < 30).sum(axis=(0, 1))
    shorter = max(1, round(size * min(width, height) / max(width, height)))
    assert abs(int(painted) - size * shorter) <= size  # one row or column, by rounding


def test_shrinking_while_decoding_changes_little() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize(
        (1600, 1600), Image.Resampling.BICUBIC
    )
    data = encoded(smooth, "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert load_picture(Picture(data=data), CONFIG).size == (200, 200)
    assert np.abs(square(data).astype(int) - whole.astype(int)).mean() < 1.0


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (3, 4000), (64, 64), (63, 64)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_extreme_shapes_are_centred(width: int, height: int, file_format: str) -> None:
    pixels = square(encoded(Image.new("RGB", (width, height), RED), file_format))
    assert_near(colour(pixels, 31 / 64, 31 / 64), RED, 20)
    painted = (pixels != 255).any(axis=0)
    shorter = max(1, round(64 * min(width, height) / max(width, height)))
    assert sorted((painted.any(axis=0).sum(), painted.any(axis=1).sum())) == [shorter, 64]
    for axis in (0, 1):
        places = np.flatnonzero(painted.any(axis=axis))
        assert abs(places[0] - (63 - places[-1])) <= 1


def test_a_square_of_the_right_size_is_not_touched() -> None:
    values = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(square(encoded(Image.fromarray(values), "PNG")), values.transpose(2, 0, 1))


def refusal(picture: Picture, config: PreprocessorConfig = CONFIG) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(PictureError) as error:
            load_picture(picture, config)
    assert not caught, [str(warning.message) for warning in caught]
    assert error.value.field == "image"
    assert error.value.reason.count(": ") <= 2  # what and why, each once
    return error.value.reason


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    empty, words, fifo = tmp_path / "empty.jpg", tmp_path / "words.jpg", tmp_path / "fifo.jpg"
    empty.write_bytes(b"")
    words.write_text("<html>404 Not Found</html>")
    os.mkfifo(fifo)
    missing = tmp_path / "missing.jpg"
    assert "no such file" in refusal(Picture(path=missing))
    assert str(missing) in refusal(Picture(path=missing))
    assert "is not a file" in refusal(Picture(path=tmp_path))
    assert "is not a file" in refusal(Picture(path=fifo))
    assert "0 bytes" in refusal(Picture(path=empty))
    assert "0 bytes" in refusal(Picture(data=b""))
    assert "is none of JPEG, PNG" in refusal(Picture(path=words, reference="words.jpg"))
    assert "cannot be read" in refusal(Picture(path=Path("a\0b.jpg")))
    assert "cannot be read" in refusal(Picture(path=tmp_path / ("x" * 5000)))
    assert len(refusal(Picture(path=tmp_path / ("x" * 5000)))) < 600


def test_formats_that_shops_do_not_use_stay_shut() -> None:
    assert "is none of JPEG" in refusal(Picture(data=encoded(halves(64, 64), "ICO")))
    assert "is none of JPEG" in refusal(Picture(data=encoded(halves(), "PPM")))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff", "tiff lzw"])
def test_truncated_files(kind: str) -> None:
    rng = np.random.default_rng(2)
    noise = Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
    options = {"compression": "tiff_lzw"} if kind == "tiff lzw" else {}
    data = encoded(noise, kind.split()[0].upper(), **options)
    assert "damaged" in refusal(Picture(data=data[: len(data) // 2], reference="half.jpg"))
    assert "half.jpg" in refusal(Picture(data=data[: len(data) // 2], reference="half.jpg"))


def test_too_many_bytes_are_refused_unread(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(2**40)  # a sparse file that no test could read
    assert "1,099,511,627,776 bytes are over max_picture_bytes = 20,971,520" in refusal(Picture(path=large))
    small = PreprocessorConfig(max_picture_bytes=100)
    data = encoded(halves(), "PNG")
    assert "over max_picture_bytes = 100" in refusal(Picture(data=data), small)
    assert read_picture(Picture(data=data), PreprocessorConfig(max_picture_bytes=len(data))) == data


def test_too_many_pixels_are_refused_from_the_header() -> None:
    header_only = encoded(Image.new("1", (8000, 8000)), "PNG")[:100]  # nothing to decode there
    assert "8,000 x 8,000 pixels are over max_picture_pixels = 50,000,000" in refusal(Picture(data=header_only))
    config = PreprocessorConfig(max_picture_pixels=96 * 64)
    assert load_picture(Picture(data=encoded(halves(), "PNG")), config).size == (96, 64)
    assert "over max_picture_pixels = 6,144" in refusal(Picture(data=encoded(halves(97, 64), "PNG")), config)


def test_pillows_own_warning_and_error_for_bombs_do_not_escape() -> None:
    warned = encoded(Image.new("1", (10_000, 10_000)), "PNG")[:100]  # above Pillow's 89 million
    assert "10,000 x 10,000 pixels" in refusal(Picture(data=warned))
    refused = encoded(Image.new("1", (20_000, 10_000)), "PNG")[:100]  # above twice that
    assert "200000000 pixels" in refusal(Picture(data=refused))


def test_pixels_of_unknown_range_are_refused() -> None:
    values = np.full((8, 8), 70_000, np.int32)
    assert "70000" in refusal(Picture(data=encoded(Image.fromarray(values), "TIFF")))
    assert "-1" in refusal(Picture(data=encoded(Image.fromarray(-np.ones((8, 8), np.int32)), "TIFF")))
    assert "floating-point" in refusal(Picture(data=encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")))


def shape_or_reason(data: bytes) -> tuple[int, ...] | str:
    try:
        return square(data).shape
    except PictureError as error:
        return error.reason


SAMPLES = [make() for kinds in (COLOURED, TRANSPARENT) for make in kinds.values()] + [
    make() for make, _, _ in GREY.values()
]


@settings(max_examples=400)
@given(st.data())
def test_damaged_bytes_give_a_picture_or_a_picture_error_and_no_warning(draw: st.DataObject) -> None:
    data = bytearray(draw.draw(st.sampled_from(SAMPLES)))
    for _ in range(draw.draw(st.integers(1, 8))):
        place = draw.draw(st.integers(0, min(len(data) - 1, draw.draw(st.sampled_from([64, 512, 10**6])))))
        data[place] = draw.draw(st.integers(0, 255))
    data = data[: draw.draw(st.sampled_from([len(data), len(data) - 1, len(data) * 3 // 4]))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = shape_or_reason(bytes(data))
    assert outcome == (3, 64, 64) or 0 < len(outcome) < 400
    assert not caught, [str(warning.message) for warning in caught]


def test_threads_share_nothing_and_leave_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    expected = [square(data) for data in SAMPLES]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = list(pool.map(square, SAMPLES))
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert list(warnings.filters) == before
