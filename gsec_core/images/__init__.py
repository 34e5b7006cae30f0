"""Images: from bytes to the pixels that a viewer shows."""
