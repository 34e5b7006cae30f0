"""Text counterparts of images: what stands for a description of each."""
