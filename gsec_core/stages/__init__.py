"""The stages of the pipeline. Each module defines one stage: its steps and the tables that they write."""
