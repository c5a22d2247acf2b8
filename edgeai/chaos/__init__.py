"""A fault lab: an endpoint with every fault that real ones have, and the score of whoever talks to it."""
