"""Deploy trained DA-LIF spiking networks: the exported file, and the proof that it fires the same spikes."""

__version__ = "0.1.0"
