"""The project's own objects in a store: their layout, checkpoints, and the local cache of packed datasets."""
