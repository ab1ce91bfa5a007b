"""The gate step: compare the metrics with the configured bounds and with the champion's."""
