"""Operating system: child processes, file locks, retries."""
