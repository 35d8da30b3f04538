"""How each result was made, and is made again."""

from __future__ import annotations

import json

from rendering.record import RESULTS, table


def commands() -> str:
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        if "command" in record:
            rows.append([path.name, record["date"], f"`{_from_the_root(record['command'])}`"])
    return "\n".join([
        "## Running them again\n",
        "From the repository's root, with the virtual environment that `make serve` makes. `...` stands for a folder "
        "of one's own: of traces in the format of docs/simulator.md, of a model's file, or of the file that "
        "`longspan profile` writes. `make results` draws this page anew; `make results TRACES=DIR` runs the "
        "simulations of the papers' figures first, which takes about a quarter of an hour of each of two cores.\n",
        table(["file", "of", "command"], rows, text=3),
    ])


def _from_the_root(command: str) -> str:
    """Older records name a script, from benchmarks/, where it stood then: `paper_medha.py` is now `paper/medha.py`."""
    python, script, *options = command.split(" ")
    if script == "-m":
        return command
    name = script.rpartition("/")[2]
    (module,) = (
        f"benchmarks.{path.parent.name}.{path.stem}"
        for path in RESULTS.parent.glob("*/*.py")
        if name in (path.name, f"{path.parent.name}_{path.name}")
    )
    return " ".join([python, "-m", module, *options])
