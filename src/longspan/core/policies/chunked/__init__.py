"""Chunked prefill in mixed batches, preempted at every chunk: the frame of medha, its baselines, and longspan."""
