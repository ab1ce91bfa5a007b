"""The dataset that ingest writes: ledger, shards, table, near duplicates, report."""
