"""`gsec serve`: a read-only server of all runs, their reports, and metrics. It reads stores and nothing else."""
