"""Prefect tasks around the library: a slice of shards, with retries, progress and artifacts."""
