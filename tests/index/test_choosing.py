"""Which index a segment gets."""

from __future__ import annotations

import pytest

import index.choosing
from index.choosing import FLAT_ROWS, Choice

ROWS, WIDTH = 1_000_000, 256


@pytest.mark.parametrize(
    ("memory_gb", "factory"),
    [
        (2, "HNSW16,SQfp16"),
        (1, "HNSW16,SQ8"),
        (0.6, "IVF4096,SQ8"),
        (0.2, "IVF4096,RaBitQfs"),
        (0.01, "IVF4096,RaBitQfs"),
    ],
)
def test_half_of_the_memory_may_be_taken(memory_gb: float, factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.choosing, "memory_bytes", lambda: int(memory_gb * 1e9))
    assert Choice().factory(ROWS, WIDTH) == factory
    assert Choice().factory(FLAT_ROWS, WIDTH) == "Flat"
