"""The report of a run: HTML pages that open from disk, drawn from tables that the user has too."""
