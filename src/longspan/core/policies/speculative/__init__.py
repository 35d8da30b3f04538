"""Shortest job first, by predicted length: SSJF (arXiv 2404.08509), and ALISE (arXiv 2410.23537), which preempts."""
