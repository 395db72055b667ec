"""From the archives, as they are distributed, to shards and batches."""
