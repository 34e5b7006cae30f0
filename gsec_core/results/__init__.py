"""What a finished run reports, and where it goes: quality, publication, status, export."""
