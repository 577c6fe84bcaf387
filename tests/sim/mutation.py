"""One safety rule taken out of the real sources: how a mutant is written, applied and hunted.

``python -m tests.sim.mutation NAME MODULE [ARGUMENT ...]`` runs a module as ``python -m`` does, in
a world where the mutant NAME of ``tests.sim.mutants`` replaces the sources that it names. Nothing
is written to disk: an import hook compiles the changed text.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

SIMULATION = "simulation"
EXHAUSTIVE, FIRE = "exhaustive", "fire"
FOUND = 3
"""The exit code of a check that has found something, and not only broken down."""
INSTALLED = "IM_ACTORS_MUTANT"
"""Environment: the name of the mutant in whose world this process and its children run."""


class SourceChanged(Exception):
    """A mutant does not fit the sources any more."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace ``old``, which occurs exactly once in the source of ``module``, by ``new``."""

    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule, and the sources without it."""

    name: str
    rule: str
    """The rule in words, with its section of the design."""
    edits: tuple[Edit, ...]
    by: str = SIMULATION
    """Who must notice: the simulation, ``exhaustive`` with the name of a configuration, or ``fire``
    with the kind of store and the part of ``tests.storage.fire``."""
    seeds: int = 40
    """Within so many seeds it must be noticed."""
    known: int | None = None
    """A rare one: a seed that is known to show it is tried first, and is one of ``seeds``."""
    faults: tuple[str, ...] | None = None
    """Its seeds have exactly these kinds of faults; None: those that each seed draws."""

    def __post_init__(self) -> None:
        assert self.edits, self.name

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(edit.module for edit in self.edits))

    def apply(self, module: str, source: str) -> str:
        """The changed source of one module."""
        for edit in self.edits:
            if edit.module != module:
                continue
            count = source.count(edit.old)
            if count != 1:
                raise SourceChanged(
                    f"mutant {self.name}: found {count} times in {module}, where it has to be"
                    f" once: the source changed: mend this mutant\n{edit.old}"
                )
            source = source.replace(edit.old, edit.new)
        return source


def mutant(name: str, rule: str, *edits: Edit, **options: Any) -> Mutant:
    """A mutant whose edits are listed like arguments."""
    return Mutant(name, rule, edits, **options)


@dataclass(frozen=True, slots=True)
class Redundant:
    """A rule whose removal nobody notices, because another rule does the same work. Both at once
    are missed."""

    name: str
    rule: str
    because: str
    """Which other rule does the work, and how."""
    edits: tuple[Edit, ...]
    others: tuple[Edit, ...]
    """The other rule removed too."""
    faults: tuple[str, ...] | None = None
    known: int | None = None
    seeds: int = 40

    @property
    def alone(self) -> Mutant:
        """Without this rule only."""
        return Mutant(f"{self.name}-alone", self.rule, self.edits, faults=self.faults)

    @property
    def both(self) -> Mutant:
        """Without this rule and the one that makes up for it: to be noticed."""
        edits = (*self.edits, *self.others)
        name, rule = self.name, self.rule
        seeds, known, faults = self.seeds, self.known, self.faults
        return Mutant(name, rule, edits, seeds=seeds, known=known, faults=faults)


def source_of(module: str) -> Path:
    """The file of a module, which is not imported for that (its packages are)."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, mutant: Mutant, module: str, path: str) -> None:
        super().__init__(module, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed text; nothing of it goes into a cache of byte code."""
        path = self.get_filename(fullname)
        source = self._mutant.apply(fullname, Path(path).read_text())
        return compile(source, path, "exec")


class _Finder:
    """Stands before the other finders, for the modules of one mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> Any:
        if fullname not in self._mutant.modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None, fullname
        assert spec.origin is not None, fullname
        loader = _Loader(self._mutant, fullname, spec.origin)
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def install(mutant: Mutant) -> None:
    """From here on the mutant's modules are imported in their changed form."""
    early = [module for module in mutant.modules if module in sys.modules]
    assert not early, f"imported before the mutant was installed: {early}"
    sys.meta_path.insert(0, _Finder(mutant))  # type: ignore[arg-type]


def words_for(module: str) -> list[str]:
    """Arguments for python: a module, in the world of the mutant that is installed here, if any."""
    name = os.environ.get(INSTALLED)
    return ["-m", module] if name is None else ["-m", "tests.sim.mutation", name, module]


def main() -> None:
    from tests.sim.mutants import find

    name, module, *arguments = sys.argv[1:]
    install(find(name))
    os.environ[INSTALLED] = name
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
