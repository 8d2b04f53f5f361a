"""SpikingGraph -> a file format's own object; one module a format. Exporters write no files."""
