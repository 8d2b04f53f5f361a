"""The commands, one module each; they call deploy and nothing else."""
