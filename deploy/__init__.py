"""The service: what is about requests."""
