"""Medha's policy (arXiv 2409.17264): preemptive, slack-aware chunked prefill in mixed batches; and its baselines."""
