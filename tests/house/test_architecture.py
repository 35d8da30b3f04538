"""The rules of the house (docs/architecture.md): imports go down only, torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import longspan

SOURCE = Path(longspan.__file__).parent
# Ground floor first. A module imports from its own floor and from those below it.
FLOORS = [
    ["errors", "cache", "config", "service_level", "sampling_params", "phases", "files"],
    ["core"],
    ["outputs", "workload", "metrics", "sib"],
    ["simulator"],
    ["native"],
    ["distributed"],
    ["attention"],
    ["layers"],
    ["models"],
    ["worker"],
    ["executor"],
    ["engine"],
    ["profiler"],
    ["entrypoints"],
    ["__init__", "__main__"],
]
TORCH_FLOORS = {"native", "distributed", "attention", "layers", "models", "worker"}
WITHOUT_TORCH = ["core", "core.scheduler", "core.policies", "metrics.event_log", "models.config",
                 "models.catalog", "worker.messages", "executor.base", "executor.multiproc",
                 "engine.async_llm", "profiler.profile", "simulator.simulator",
                 "entrypoints.simulate.command", "entrypoints.cli"]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Every module imported in the file, also inside functions; or only what importing the file imports."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if at_import_time and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if at_import_time and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield child.module
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


def floor(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_a_floor() -> None:
    assert {floor(module) for module in modules()} <= LEVEL.keys()


def test_imports_go_down_only() -> None:
    upward = [
        f"{module} imports {target}"
        for module, path in modules().items()
        for target in imports(path)
        if target.startswith("longspan.")
        and (below := floor(target.removeprefix("longspan."))) in LEVEL
        and LEVEL[below] > LEVEL[floor(module)]
    ]
    assert not upward


def test_imports_have_no_circle() -> None:
    known = modules()
    graph = {
        module: {
            name
            for target in imports(path, at_import_time=True)
            if (name := target.removeprefix("longspan.")) in known and name != module
        }
        for module, path in known.items()
    }
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_torch_stays_where_it_belongs() -> None:
    strays = [
        f"{module} imports {target}"
        for module, path in modules().items()
        for target in imports(path)
        if target.split(".")[0] == "torch" and floor(module) not in TORCH_FLOORS
    ]
    assert not strays


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_importing_loads_no_torch(module: str) -> None:
    check = f"import sys, longspan.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_simulator_and_executor_never_meet() -> None:
    meetings = [
        (module, target)
        for module, path in modules().items()
        for target in imports(path)
        for one, other in [("simulator", "executor"), ("executor", "simulator")]
        if floor(module) == one and target.startswith(f"longspan.{other}")
    ]
    assert not meetings
