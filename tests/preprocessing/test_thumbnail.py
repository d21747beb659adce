from __future__ import annotations

import base64
import io

from PIL import Image

from item.catalog.listing import Picture
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.thumbnail import THUMBNAIL, thumbnail
from tests.conftest import picture_bytes


def test_thumbnails_are_small_pictures() -> None:
    uri = thumbnail(Picture(data=picture_bytes(0, (200, 30, 30), (400, 200))), PreprocessorConfig())
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (THUMBNAIL, THUMBNAIL // 2)
    assert len(uri) < 8000
