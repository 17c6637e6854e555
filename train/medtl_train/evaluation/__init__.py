"""Evaluates a trained network: its files of figures and predictions, and its report."""
