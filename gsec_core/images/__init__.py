"""Decode image files to the pixels that a viewer shows."""
