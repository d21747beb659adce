"""Pictures as the encoder sees them: decoded by Pillow within limits, upright, RGB, padded to a square.

Colour profiles are not applied; of an animation or of several pages the first is taken.
"""

from __future__ import annotations

import io
import math
import stat
import threading
import warnings

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


def read_picture(picture: Picture, config: PreprocessorConfig) -> bytes:
    """The picture's encoded bytes.

    Raises:
        PictureError: no such file, not a file, empty, over `max_picture_bytes` (looked at before reading), or a URL
            (`item.preprocessing.fetching` turns them into bytes).
    """
    if picture.url is not None:
        raise PictureError("image", f"{_name(picture)}: is a URL, which is not fetched; download it and give its path")
    if picture.path is None:
        data = picture.data or b""
        _check_bytes(len(data), picture, config)
        return data
    try:
        status = picture.path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PictureError("image", f"{_name(picture)}: is not a file; give the path of a picture")
        _check_bytes(status.st_size, picture, config)
        return picture.path.read_bytes()
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError("image", f"{_name(picture)}: no such file; it should be at {picture.path}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise PictureError("image", f"{_name(picture)}: cannot be read: {_cause(error)}") from error


def load_picture(picture: Picture, config: PreprocessorConfig) -> Image.Image:
    """The picture in RGB, upright, transparency over the background; at full size or shrunk on the way.

    A JPEG is decoded at 1/2, 1/4 or 1/8 where its longer side stays at twice `picture_size` at least.

    Raises:
        PictureError: as `read_picture`; over `max_picture_pixels`; not one of FORMATS; damaged.
    """
    data = read_picture(picture, config)
    try:
        with _pillow_warnings_off:
            return _decode(data, picture, config)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        reason = f"{_name(picture)}: is none of {', '.join(FORMATS)}, or its header is damaged; save it again"
        raise PictureError("image", reason) from error
    except Image.DecompressionBombError as error:
        raise PictureError("image", f"{_name(picture)}: {error}; shrink it") from error
    except Exception as error:  # on damaged files Pillow raises whatever its parser stumbles over
        raise PictureError("image", f"{_name(picture)}: damaged ({_cause(error)}); save it again") from error


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
    name = picture.reference or str(picture.path or "")
    if not name:
        return "the picture"
    return repr(name if len(name) <= 200 else f"...{name[-200:]}")


def _cause(error: Exception) -> str:
    """What the error says, without the path that an OSError repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)[:200] or type(error).__name__


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


class _PillowWarningsOff:
    """Pillow's warnings off while any thread is inside: odd metadata does no harm, and of sizes we decide ourselves.

    The filters belong to the whole process, so the first thread sets them and the last one puts them back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_pillow_warnings_off = _PillowWarningsOff()


def _decode(data: bytes, picture: Picture, config: PreprocessorConfig) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
        _check_pixels(image, picture, config)
        scale = min(1.0, _REDUCING_GAP * config.picture_size / max(image.size))
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image.load()
        return _upright(_to_rgb(image, config.background), _orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
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
        return image if image.mode == "RGB" else image.convert("RGB")
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
