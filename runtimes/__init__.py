"""SpikingGraph or exported file -> Recording; one module a runtime."""
