"""Teams: prompts that several instances compute together."""
