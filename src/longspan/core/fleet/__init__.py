"""A fleet that changes: what is lost is computed again, what leaves is emptied."""
