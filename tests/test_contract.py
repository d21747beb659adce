"""The contract: its generated code is up to date, its style passes, and what was agreed upon is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from deploy.messages import vector_message, vector_of
from item.v1 import item_pb2

ROOT = Path(__file__).parents[1]
GENERATE = ROOT / "proto" / "generate.sh"


@pytest.fixture(scope="module")
def generators() -> None:
    """The generators' environment; made when it is not there, which needs a package index."""
    if not (ROOT / ".venv-proto" / "tools").is_file():
        made = subprocess.run(["bash", GENERATE, "--check"], env={**os.environ, "PYTHON": sys.executable})
        if not (ROOT / ".venv-proto" / "tools").is_file():
            pytest.skip(f"the generators cannot be installed here (exit status {made.returncode})")


@pytest.mark.slow
def test_regenerating_changes_nothing(generators: None) -> None:
    check = subprocess.run(["bash", GENERATE, "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.slow
def test_the_check_finds_drift_and_style(generators: None, tmp_path: Path) -> None:
    for folder in ("proto", "item/v1"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = tmp_path / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    (tmp_path / ".venv-proto").symlink_to(ROOT / ".venv-proto")
    contract = tmp_path / "proto" / "item" / "v1" / "item.proto"
    text = contract.read_text()

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", tmp_path / "proto" / "generate.sh", "--check"], capture_output=True, text=True)

    assert check().returncode == 0
    contract.write_text(text.replace("  string text = 1;", "  string words = 1;", 1))
    drift = check()
    assert drift.returncode != 0
    assert "words" in drift.stdout
    assert "make proto" in drift.stderr
    contract.write_text(text.replace("  // Its name.\n", "", 1))
    style = check()
    assert style.returncode != 0
    assert "comment" in style.stdout


def test_services_and_rpcs() -> None:
    services = {name: [rpc.name for rpc in one.methods] for name, one in item_pb2.DESCRIPTOR.services_by_name.items()}
    assert services == {
        "ItemService": [
            *("Embed", "EmbedStream", "Search", "PredictCategory"),
            *("UpsertProducts", "DeleteProducts", "GetProduct", "GetInfo"),
        ],
        "AdminService": [
            *("ListAdapters", "LoadAdapter", "UnloadAdapter", "Reload"),
            *("Reembed", "SwitchGeneration", "Rollback", "Backup"),
        ],
    }


def test_every_data_rpc_has_a_collection() -> None:
    for name in ("Search", "PredictCategory", "UpsertProducts", "DeleteProducts", "GetProduct", "Reembed", "Backup"):
        field = item_pb2.DESCRIPTOR.message_types_by_name[f"{name}Request"].fields_by_name["collection"]
        assert field.number == 1


def test_the_filter_is_a_tree() -> None:
    kinds = [field.name for field in item_pb2.Filter.DESCRIPTOR.oneofs_by_name["kind"].fields]
    assert kinds == ["all", "any", "not", "equal", "in", "range", "under"]
    under = item_pb2.Filter(under=item_pb2.UnderFilter(category=["Home", "Chairs"]))
    negated: dict[str, Any] = {"not": under}  # a word of Python's
    cheap = item_pb2.Filter(range=item_pb2.RangeFilter(attribute="price", below=10))
    tree = item_pb2.Filter(all=item_pb2.FilterList(filters=[cheap, item_pb2.Filter(**negated)]))
    read = item_pb2.Filter.FromString(tree.SerializeToString())
    assert read == tree
    assert getattr(read.all.filters[1], "not").under.category == ["Home", "Chairs"]
    assert not read.all.filters[0].range.HasField("at_least")


def test_numbers_of_fields_are_never_reused_or_left_out() -> None:
    file = descriptor_pb2.FileDescriptorProto()
    item_pb2.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        numbers = sorted(field.number for field in message.field)
        reserved = {number for one in message.reserved_range for number in range(one.start, one.end)}
        assert not reserved & set(numbers)
        assert sorted(reserved | set(numbers)) == list(range(1, 1 + len(reserved | set(numbers)))), message.name


def test_vectors_are_little_endian_float32() -> None:
    message = vector_message(np.array([1, 0, -0.5], ">f4").astype(np.float32), "0" * 64)
    assert message.values == bytes.fromhex("0000803f 00000000 000000bf")
    back = vector_of(message, "vector", space="0" * 64, width=3)
    np.testing.assert_allclose(back, np.array([1, 0, -0.5]) / np.sqrt(1.25), atol=1e-7)
