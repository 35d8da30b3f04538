"""What the scheduler knows: requests, their KV, instances and their work; how events change it, and what must hold."""
