"""Quantize to a bound: what a user can afford or must keep → the best types of every tensor, measured."""
