"""Two tasks for lm-eval whose data is made here, since there is no hub: capitals, by the likelihood of each answer, and
a needle in a haystack, which is a number that has to be said again."""

from __future__ import annotations

import json
import random
from pathlib import Path

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "Egypt": "Cairo",
    "Russia": "Moscow", "China": "Beijing", "Greece": "Athens", "Austria": "Vienna", "Portugal": "Lisbon",
    "Cuba": "Havana", "Peru": "Lima", "Poland": "Warsaw", "Ireland": "Dublin", "Norway": "Oslo",
}  # fmt: skip
_HAY = ("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ",
        "A boat lies in the harbour, and nobody is there. ", "The train was late, as often in winter. ")  # fmt: skip

_CAPITALS_TASK = """\
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
_NEEDLE_TASK = """\
task: needle
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}\\nThe secret number of {{{{key}}}} is"
doc_to_target: "{{{{number}}}}"
generation_kwargs: {{max_gen_toks: 8, temperature: 0.0, until: ["."]}}
filter_list:
  - name: number
    filter: [{{function: regex, regex_pattern: "([0-9]{{5}})"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def write_tasks(folder: Path) -> None:
    """Write both, for lm-eval's --include_path."""
    for name, task, rows in (("capitals", _CAPITALS_TASK, capitals()), ("needle", _NEEDLE_TASK, needles())):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(task.format(data=data))


def capitals() -> list[dict[str, object]]:
    """Each with three wrong answers."""
    draw = random.Random(0)
    rows: list[dict[str, object]] = []
    for country, capital in CAPITALS.items():
        choices = [capital, *draw.sample([other for other in CAPITALS.values() if other != capital], 3)]
        draw.shuffle(choices)
        rows.append({"country": country, "choices": choices, "answer": choices.index(capital)})
    return rows


def needles(words: tuple[int, ...] = (150, 600, 1800)) -> list[dict[str, object]]:
    """Haystacks of so many words, each with the needle at its beginning, in its middle, and near its end."""
    draw = random.Random(1)
    rows: list[dict[str, object]] = []
    for most in words:
        for depth in (0.1, 0.5, 0.9):
            key, number = draw.choice(list(CAPITALS)), str(draw.randrange(10_000, 100_000))
            hay: list[str] = []
            while sum(len(text.split()) for text in hay) < most:
                hay.append(draw.choice(_HAY))
            hay.insert(int(len(hay) * depth), f"The secret number of {key} is {number}. ")
            rows.append({"text": "".join(hay), "key": key, "number": number})
    return rows
