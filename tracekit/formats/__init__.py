"""bytes → raw events: one module per trace format, found by content."""
