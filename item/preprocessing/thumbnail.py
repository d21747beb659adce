"""Small pictures that a page carries inside itself."""

from __future__ import annotations

import base64
import io

from item.catalog.listing import Picture
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.pictures import load_picture

THUMBNAIL = 128  # pixels of the longer side
QUALITY = 70  # of the JPEG


def thumbnail(picture: Picture, limits: PreprocessorConfig) -> str:
    """A small JPEG of the picture as a data URI.

    Raises:
        PictureError: it cannot be read or is over a limit.
    """
    image = load_picture(picture, limits)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
