"""What was computed once, and whose KV is still there: found by its tokens, adopted, evicted."""
