"""Who answers a request: this machine, or an endpoint. What is private never has an endpoint to go to."""
