"""A client for ComfyUI servers: queue workflows, follow them, fetch their results."""
