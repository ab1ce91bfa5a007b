"""The project's own objects in a store: checkpoints, and the local cache of packed datasets."""
