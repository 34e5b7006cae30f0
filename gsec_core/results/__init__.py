"""The results of finished runs: quality, comparison, publication, status, export, notebooks."""
