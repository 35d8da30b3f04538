"""LoongServe's algorithm (SOSP'24, section 5): dispatching, allocation, batching, scaling; and its ablations."""
