"""Features of images: the networks that they are taken from, the weights of those, and distances between two sets of features."""
