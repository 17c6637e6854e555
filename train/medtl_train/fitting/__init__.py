"""Fits a network to a data set: batches, losses, steps, epochs, and the choice of the best."""
