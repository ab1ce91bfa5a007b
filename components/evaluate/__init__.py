"""The evaluate step: draw images from a checkpoint and measure how far they are from the data, under a stated protocol."""
