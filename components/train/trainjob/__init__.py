"""Training on several nodes: the TrainJob, its log, its failures, and the entry point of a node."""
