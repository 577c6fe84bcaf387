"""The order of the packages (design section 4): nothing imports what comes after it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import im_actors

ROOT = Path(im_actors.__file__).parent
MAY = {
    "__init__": set(),
    "errors": set(),
    "proof": set(),
    "core": {"errors"},
    "wire": {"core", "errors"},
    "storage": {"core", "errors"},
    "net": {"wire", "core", "errors"},
    "mailbox": {"net", "storage", "wire", "core", "errors"},
    "gateway": {"mailbox", "net", "storage", "wire", "core", "errors"},
    "client": {"net", "storage", "wire", "core", "errors"},
    "server": {"net", "storage", "wire", "core", "errors"},
    "actors": {"server", "gateway", "mailbox", "net", "storage", "wire", "core", "errors"},
    "testing": {
        *("proof", "client", "server", "gateway", "mailbox"),
        *("net", "storage", "wire", "core", "errors"),
    },
    "cli": {
        *("proof", "actors", "testing", "client", "server", "gateway"),
        *("mailbox", "net", "storage", "wire", "core", "errors"),
    },
}
"""Each package and those that it may import, besides itself and ``im_actors`` for its version."""
RAY_MODULES = {"actors/ray_api.py", "actors/start_hook.py"}
SDK = {"errors", "core", "wire", "net", "client"}
EXTRAS = {"ray", "redis", "jwt", "rich", "psutil", "uvloop", "matplotlib", "sortedcontainers"}
"""Not in the base install, which has to be enough for the SDK and what it rests on."""


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield relative.parts[0].removesuffix(".py"), path


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Each imported module and whether the import is at the top of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the whole path"
            yield str(node.module), id(node) in top
            if node.module == "im_actors":
                for alias in node.names:
                    yield f"im_actors.{alias.name}", id(node) in top


def test_every_package_has_its_place() -> None:
    assert {layer for layer, _ in sources()} <= set(MAY)


def test_nothing_imports_what_comes_after_it() -> None:
    wrong = []
    for layer, path in sources():
        for name, _ in imported(path):
            root, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if root != "im_actors" or target in ("", "__version__", layer):
                continue
            if target not in MAY[layer]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_ray_is_called_in_its_own_modules_only() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for _, path in sources()
        for name, _ in imported(path)
        if name.partition(".")[0] == "ray" and path.relative_to(ROOT).as_posix() not in RAY_MODULES
    ]
    assert not wrong


def test_the_sdk_needs_nothing_but_the_base_install() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for layer, path in sources()
        for name, at_top in imported(path)
        if layer in SDK and at_top and name.partition(".")[0] in EXTRAS
    ]
    assert not wrong
