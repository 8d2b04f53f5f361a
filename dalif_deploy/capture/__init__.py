"""nn.Module, checkpoint or file -> SpikingGraph."""
