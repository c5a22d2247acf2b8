"""Endpoints that speak OpenAI's chat API, as engines."""
