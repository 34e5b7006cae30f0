"""Prefect flows and the command line: each stage alone, and the whole DAG."""
