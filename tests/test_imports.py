"""Which room may import which, read from the sources, and what `import item` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "item": set[str](),
    "training": {"item"},
    "index": {"item"},
    "deploy": {"item", "index"},
    "benchmarks": {"item", "training", "index", "deploy"},
}
HEAVY = ("torch", "ray", "faiss", "onnxruntime", "pyarrow", "PIL", "timm", "tokenizers", "transformers", "sklearn")


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Absolute names of all modules that a file of `package` imports, lazily or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield ".".join([*above, *([node.module] if node.module else [])])


def rooms_imported(room: str) -> dict[str, set[str]]:
    """For each file of a room, the other rooms that it imports."""
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        tops = {name.split(".")[0] for name in imported_modules(path.read_text(encoding="utf-8"), package)}
        found[str(path.relative_to(ROOT))] = (tops & MAY_IMPORT.keys()) - {room}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    wrong = {path: rooms - MAY_IMPORT[room] for path, rooms in rooms_imported(room).items() if rooms - MAY_IMPORT[room]}
    assert not wrong


def test_the_rooms_form_no_cycle() -> None:
    imports = {room: set().union(*rooms_imported(room).values()) for room in MAY_IMPORT}
    assert any(imports.values()), "nothing was parsed: the test looks at the wrong folder"
    while leaves := [room for room, others in imports.items() if not others & imports.keys()]:
        for room in leaves:
            del imports[room]
    assert not imports, f"these rooms import each other in a circle: {imports}"


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b\nfrom .c import d\nfrom .. import e\ndef f():\n    from g.h import i\n"
    assert set(imported_modules(source, "x.y")) == {"a.b", "x.y.c", "x", "g.h"}


def test_importing_item_loads_nothing_heavy() -> None:
    code = f"import sys, item; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
