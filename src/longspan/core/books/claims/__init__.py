"""What requests claim of instances: slots for tokens to come, or to be computed again."""
