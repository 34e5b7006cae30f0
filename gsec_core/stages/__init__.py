"""The stages, one module each: its tables, its steps."""
