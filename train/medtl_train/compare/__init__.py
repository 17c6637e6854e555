"""Compares finished runs on the same test images."""
