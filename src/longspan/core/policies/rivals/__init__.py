"""Rivals of the default policy, in the same frame: QoServe, the fair sojourn protocol, and PREFLOW's rank."""
