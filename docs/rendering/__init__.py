"""The sections of docs/results.md, each out of a file under benchmarks/results/."""
