"""The rules of the house (docs/architecture.md): imports go down only, torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import longspan

SOURCE = Path(longspan.__file__).parent
# Ground floor first. A module imports from its own floor and from those below it.
FLOORS = [
    ["errors", "cache", "config", "service_level", "structured_outputs", "sampling_params", "interrupts", "phases",
     "files", "pipeline", "prefix_keys", "worker_usage", "log_fields", "trace_context", "plot_axes",
     "door"],
    ["core"],
    ["outputs", "workload", "metrics", "sib"],
    ["simulator"],
    ["tuning"],
    ["native"],
    ["distributed"],
    ["attention"],
    ["layers"],
    ["models"],
    ["worker"],
    ["executor"],
    ["engine"],
    ["profiler"],
    ["integrations"],
    ["entrypoints"],
    ["__init__", "__main__"],
]
# Of the core, in the same way; a module counts with the longest of these names that it begins with.
CORE_FLOORS = [
    ["internal_error", "actions", "events", "decision", "estimate", "loans"],
    ["costs"],
    ["books", "kv", "prefixes"],
    ["fleet", "invariants"],
    ["state", "lookahead", "news", "progress", "inventory"],
    ["policies.options"],
    ["policies.base"],
    ["policies.parts"],
    ["policies."],
    ["policies"],
    ["scheduler"],
    ["hierarchy"],
]
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_ROOM = 300, 1700
TORCH_FLOORS = {"native", "distributed", "attention", "layers", "models", "worker"}
WITHOUT_TORCH = ["core", "core.scheduler", "core.policies", "metrics.event_log", "models.config",
                 "models.catalog", "worker.messages", "executor.base", "executor.multiproc",
                 "engine.assembly", "engine.observer.process", "profiler.profile", "simulator.simulator",
                 "entrypoints.simulate.command", "entrypoints.cli"]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
CORE_LEVEL = {f"core.{name}": level for level, names in enumerate(CORE_FLOORS) for name in names}


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Every module imported in the file, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph() -> dict[str, set[str]]:
    """Each module, and the others of ours that it imports."""
    known = modules()
    return {
        module: {
            name
            for target in imports(path)
            if (name := target.removeprefix("longspan.")) in known and name != module
        }
        for module, path in known.items()
    }


def core_level(module: str) -> int:
    return CORE_LEVEL[max((name for name in CORE_LEVEL if module.startswith(name)), key=len)]


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


def test_imports_inside_the_core_go_down_only() -> None:
    in_core = {
        module: {target for target in targets if target.startswith("core.")}
        for module, targets in graph().items()
        if module.startswith("core.")
    }
    upward = [
        f"{module} imports {target}"
        for module, targets in in_core.items()
        for target in targets
        if core_level(target) > core_level(module)
    ]
    assert not upward


def test_rooms_of_the_core_stay_small() -> None:
    rooms: dict[str, int] = {}
    long_files = []
    for path in (SOURCE / "core").rglob("*.py"):
        count = len(path.read_text().splitlines())
        rooms[path.parent.name] = rooms.get(path.parent.name, 0) + count
        if count > MOST_LINES_OF_A_FILE:
            long_files.append(path.name)
    assert not long_files
    assert {room: count for room, count in rooms.items() if count > MOST_LINES_OF_A_ROOM} == {}


def test_imports_have_no_circle() -> None:
    """Not even inside functions, or for types alone."""
    links = graph()
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(links[module]):
                walk(target, (*path, module))
            done.add(module)

    for module in links:
        walk(module, ())


def test_torch_stays_where_it_belongs() -> None:
    strays = [
        f"{module} imports {target}"
        for module, path in modules().items()
        for target in imports(path)
        if target.split(".")[0] == "torch" and floor(module) not in TORCH_FLOORS
    ]
    assert not strays


def test_importing_loads_no_torch() -> None:
    """The first that does is told: in one process, one after the other."""
    check = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(f'longspan.{module}')\n"
        "    assert 'torch' not in sys.modules, module"
    )
    subprocess.run([sys.executable, "-c", check, *WITHOUT_TORCH], timeout=60, check=True)


def test_simulator_and_executor_never_meet() -> None:
    meetings = [
        (module, target)
        for module, path in modules().items()
        for target in imports(path)
        for one, other in [("simulator", "executor"), ("executor", "simulator")]
        if floor(module) == one and target.startswith(f"longspan.{other}")
    ]
    assert not meetings
