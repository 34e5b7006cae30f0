"""The report of a run: HTML pages that open from disk, made from tables that the user has, too."""
