"""tracekit: what-if replay of Linux memory-management traces."""
