"""Fewer bits for the encoder's numbers, with the loss measured."""
