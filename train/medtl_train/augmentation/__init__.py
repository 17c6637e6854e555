"""Changes of training images: what is drawn, and what it does to a batch."""
