"""What several policies are put together from."""
