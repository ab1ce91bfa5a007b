"""The train step: run the ranks, on this machine or on several nodes, from the newest complete checkpoint in object storage."""
