"""The ingest step: any source of images becomes a validated, content-addressed dataset."""
