"""Where KV goes, who gives way when slots are short, and what moves so that room comes together."""
