"""Benchmarks of speed and quality. Each is one command, and measures a peer or a limit in the same run."""
