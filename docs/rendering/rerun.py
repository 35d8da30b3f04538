"""How each result was made, and is made again."""

from __future__ import annotations

import json

from rendering.record import RESULTS, table


def commands() -> str:
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        if "command" in record:
            rows.append([path.name, record["date"], f"`{record['command']}`"])
    return "\n".join([
        "## Running them again\n",
        "From the folder benchmarks/, with the virtual environment that `make serve` makes. `...` stands for a folder "
        "of one's own: of traces in the format of docs/simulator.md, of a model's file, or of the file that "
        "`longspan profile` writes. `make results` draws this page anew; `make results TRACES=DIR` runs the "
        "simulations of the papers' figures first, which takes about a quarter of an hour of each of two cores.\n",
        table(["file", "of", "command"], rows, text=3),
    ])
