"""Which index a segment gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import index.choosing
from index.choosing import FLAT_ROWS, Choice, memory_bytes

ROWS, WIDTH = 1_000_000, 256


@pytest.mark.parametrize(
    ("memory_gb", "factory"),
    [
        (16, "HNSW16,Flat"),
        (2, "HNSW16,SQ8"),
        (0.6, "IVF4096,SQ8"),
        (0.2, "IVF4096,RaBitQfs"),
        (0.01, "IVF4096,RaBitQfs"),
    ],
)
def test_half_of_the_memory_may_be_taken(
    memory_gb: float, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(f"{int(memory_gb * 1e9)}\n", encoding="ascii")
    monkeypatch.setattr(index.choosing, "CGROUP_LIMIT", limit)
    monkeypatch.setattr(os, "sysconf", lambda name: 2**20)  # a terabyte
    assert Choice().factory(ROWS, WIDTH) == factory
    assert Choice().factory(FLAT_ROWS, WIDTH) == "Flat"


def test_memory_is_the_machines_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.choosing, "CGROUP_LIMIT", tmp_path / "memory.max")
    physical = memory_bytes()
    assert physical > 2**28
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert memory_bytes() == physical
    (tmp_path / "memory.max").write_text(f"{2**40}\n", encoding="ascii")
    assert memory_bytes() == min(physical, 2**40)
