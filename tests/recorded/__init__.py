"""Event logs of every policy, kept so that the scheduler can be shown to decide as it did when they were made.

`logs/NAME.jsonl.gz` are written by `python -m tests.recorded.record`, which makes the runs of `runs.py`: with the
tests' driver over a model of workers, with the simulator, and with the real engine on its own clock. They were recorded
by the code of commit 4821149; four of pipelines (distserve, loongserve_no_scale_up, replicated, static_tp) anew, when
their requests began to wait for slots that may come back from later stages; five of those that chunk prompts in
pipelines (edf, fcfs, least_slack, medha, srpt), when decodes in later stages began to bound the chunks behind them;
and those of longspan, fsp, preflow and qoserve, which are younger, by the code that has them as they are.
`test_recorded_logs.py` replays them, bit for bit, and requires that they reach all that a policy can do.

A commit that changes decisions on purpose says so, and records anew the logs that differ: `python -m
tests.recorded.record NAME ...`, or all of them without names. The paragraph above then says by which code. A log is
never recorded anew only because its test fails.
"""
