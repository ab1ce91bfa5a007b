"""The evaluate step: sample images from a checkpoint and measure their distance to the dataset under a stated protocol."""
