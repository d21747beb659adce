"""Memory, and the limits of control groups as the kernel documents them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import index.machine
from index.machine import memory_bytes

MIB = 2**20


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups without limits; `own`: those of this process."""
    monkeypatch.setattr(index.machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(index.machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}.__getitem__)
    return tmp_path


def limit(groups: Path, name: str, value: str) -> None:
    path = groups / "cgroup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n", encoding="ascii")


def test_the_machines_where_no_group_limits_it(groups: Path) -> None:
    assert memory_bytes() == 4096 * MIB
    (groups / "own").write_text("0::/shop/item\n", encoding="utf-8")
    limit(groups, "shop/item/memory.max", "max")
    assert memory_bytes() == 4096 * MIB
    limit(groups, "shop/item/memory.max", str(8192 * MIB))
    assert memory_bytes() == 4096 * MIB


@pytest.mark.parametrize("group", ["shop/item", "shop", "."])
def test_the_least_of_the_groups_around(groups: Path, group: str) -> None:
    (groups / "own").write_text("0::/shop/item\n", encoding="utf-8")
    limit(groups, "shop/item/memory.max", str(1024 * MIB))
    limit(groups, f"{group}/memory.max", str(512 * MIB))
    assert memory_bytes() == 512 * MIB


def test_the_first_version_has_a_tree_for_memory(groups: Path) -> None:
    (groups / "own").write_text("3:cpu,cpuacct:/a\n2:memory:/shop\n1:name=systemd:/b\n", encoding="utf-8")
    limit(groups, "a/memory.max", str(1 * MIB))
    limit(groups, "memory/shop/memory.limit_in_bytes", str(256 * MIB))
    assert memory_bytes() == 256 * MIB


def test_a_container_sees_its_own_group_at_the_top(groups: Path) -> None:
    (groups / "own").write_text("0::/kubepods/pod1/of-the-host\n", encoding="utf-8")
    limit(groups, "memory.max", str(300 * MIB))
    assert memory_bytes() == 300 * MIB
