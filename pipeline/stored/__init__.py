"""What a store holds, what refers to it, and what of it can be deleted."""
