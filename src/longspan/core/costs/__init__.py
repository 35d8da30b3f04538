"""How long iterations take: models of it, what they are asked for, and the episodes that they are measured with."""
