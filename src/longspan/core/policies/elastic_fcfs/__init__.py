"""Elastic sequence parallelism, first come first served."""

from longspan.core.policies.elastic_fcfs.policy import ElasticFcfs

__all__ = ["ElasticFcfs"]
