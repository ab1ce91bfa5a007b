"""The gate step: are the numbers good enough, by themselves and beside the champion's."""
