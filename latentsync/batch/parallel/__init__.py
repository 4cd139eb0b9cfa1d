"""Calls of worker methods spread over processes or a Ray cluster, with retries."""
