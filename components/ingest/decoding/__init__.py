"""Decoding of untrusted images in worker processes with a memory limit."""
