"""Whether two runs fired alike, and if not, where and why. Knows graphs and recordings, never a runtime."""
