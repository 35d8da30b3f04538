"""Benchmarks, each a module that runs from the repository's root: `python -m benchmarks.FOLDER.NAME --help`.

paper       LoongServe's and Medha's own evaluations, simulated
kernels     attention on one CPU, beside what the machine can do
engine      whole engines: what elasticity, stages, shards, chunks and few bits gain and cost
policy      how policies serve the same traces, and how long they take to decide
simulator   how fast and how near the truth it is
peers       beside vLLM, llama.cpp and transformers, each of them a script in a virtual environment of its own
robustness  hostile requests, and hours of everything at once
gpu         evidence on a GPU: scripts that run without Longspan being installed

Results are JSON files under `results/`, named by the benchmark; the command in each is the one that made it.
"""
