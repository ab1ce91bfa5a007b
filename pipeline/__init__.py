"""The graph of steps, its configuration, the local services and the command line."""
