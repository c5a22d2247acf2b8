"""Endpoints that speak OpenAI's chat API: what may go there, what comes back, and every way in which it can fail."""

from edgeai.engines.cloud.attempt import Attempt
from edgeai.engines.cloud.endpoint import Endpoint
from edgeai.engines.cloud.engine import CloudEngine
from edgeai.engines.cloud.online import Network

__all__ = ["Attempt", "CloudEngine", "Endpoint", "Network"]
