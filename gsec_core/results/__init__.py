"""What a finished run has to say, and where it goes: quality, publication, status, export."""
