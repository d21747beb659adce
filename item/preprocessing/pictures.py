"""Pictures as the encoder sees them: decoded by Pillow within limits, upright, RGB, padded to a square.

Colour profiles are not applied; of an animation or of several pages the first is taken.
"""

from __future__ import annotations

import io
import math
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from item.catalog.listing import Picture
from item.errors import PictureError
from item.preprocessing.config import PreprocessorConfig

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # what shops use; Pillow's other readers stay shut

_UPRIGHT = {  # EXIF orientation -> what turns it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REDUCING_GAP = 2.0  # cheap shrinking goes to twice the size at least, the rest is bicubic
_warning_filters = threading.Lock()


def read_picture(picture: Picture, config: PreprocessorConfig) -> bytes:
    """The picture's encoded bytes.

    Raises:
        PictureError: no such file, not a file, empty, or over `max_picture_bytes` (looked at before reading).
    """
    if picture.path is None:
        data = picture.data or b""
        _check_bytes(len(data), picture, config)
        return data
    try:
        status = picture.path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PictureError("image", f"{picture.path}: is not a file; give the path of a picture")
        _check_bytes(status.st_size, picture, config)
        return picture.path.read_bytes()
    except FileNotFoundError as error:
        raise PictureError("image", f"{picture.path}: no such file; paths start at the catalogue's folder") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise PictureError("image", f"{str(picture.path)[:200]}: cannot be read: {error}") from error


def load_picture(picture: Picture, config: PreprocessorConfig) -> Image.Image:
    """The picture in RGB, upright, transparency over the background; at full size or shrunk on the way.

    A JPEG is decoded at 1/2, 1/4 or 1/8 where its longer side stays at twice `picture_size` at least.

    Raises:
        PictureError: as `read_picture`; over `max_picture_pixels`; not one of FORMATS; damaged.
    """
    data = read_picture(picture, config)
    try:
        with _open(data) as image:
            _check_pixels(image, picture, config)
            scale = min(1.0, _REDUCING_GAP * config.picture_size / max(image.size))
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            image.load()
            return _upright(_to_rgb(image, config.background), _orientation(image))
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("image", f"{_name(picture)}: is none of {', '.join(FORMATS)}; convert it") from error
    except Image.DecompressionBombError as error:
        raise PictureError("image", f"{_name(picture)}: {error}; shrink it") from error
    except Exception as error:  # on damaged files Pillow raises whatever its parser stumbles over
        raise PictureError("image", f"{_name(picture)}: damaged ({error}); save it again") from error


def to_square(image: Image.Image, config: PreprocessorConfig) -> npt.NDArray[np.uint8]:
    """An RGB picture as (3, S, S) uint8: the longer side scaled to S = picture_size (bicubic, antialiased), centred."""
    size = config.picture_size
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)
    square = np.empty((3, size, size), dtype=np.uint8)
    square[:] = np.array(config.background, dtype=np.uint8)[:, None, None]
    left, top = (size - width) // 2, (size - height) // 2
    square[:, top : top + height, left : left + width] = np.asarray(resized).transpose(2, 0, 1)
    return square


def _name(picture: Picture) -> str:
    return picture.reference or str(picture.path or "the picture")


def _check_bytes(size: int, picture: Picture, config: PreprocessorConfig) -> None:
    if size == 0:
        raise PictureError("image", f"{_name(picture)}: has 0 bytes; restore it or leave it out")
    if size > config.max_picture_bytes:
        limit = f"max_picture_bytes = {config.max_picture_bytes:,}"
        raise PictureError("image", f"{_name(picture)}: {size:,} bytes are over {limit}; shrink it")


def _check_pixels(image: Image.Image, picture: Picture, config: PreprocessorConfig) -> None:
    if image.width * image.height > config.max_picture_pixels:
        size = f"{image.width:,} x {image.height:,} pixels"
        limit = f"max_picture_pixels = {config.max_picture_pixels:,}"
        raise PictureError("image", f"{_name(picture)}: {size} are over {limit}; shrink it")


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow's warnings off: odd metadata does no harm, and of sizes we decide ourselves.

    The filters belong to the whole process, hence the lock, and hence only around headers, not around decoding.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _open(data: bytes) -> Image.Image:
    """Reads the header only."""
    with _quiet_pillow():
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _orientation(image: Image.Image) -> int:
    try:
        with _quiet_pillow():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata: the pixels are there, and nothing says how to turn them
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise PictureError("image", "has floating-point pixels, of no known range; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    opaque = Image.new("RGB", image.size, background)
    opaque.paste(image, mask=image)
    return opaque


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Modes I;16 and I (32 bits, taken as 16) to 8 bits: 65535 becomes 255. Pillow's own convert() cuts at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError("image", f"has pixels from {values.min()} to {values.max()}; save it with 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
