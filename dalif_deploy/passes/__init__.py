"""SpikingGraph -> SpikingGraph; one module a pass."""
