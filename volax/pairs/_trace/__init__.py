"""Which axes of which parameters belong to one unit: the tracer."""
