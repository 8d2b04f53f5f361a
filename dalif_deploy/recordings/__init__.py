"""Event-camera recordings in files: read by content, checked, and binned to timesteps."""

from dalif_deploy.recordings.binning import Binned, Binning, BinningReport, bin_recordings
from dalif_deploy.recordings.events import Events, Recordings
from dalif_deploy.recordings.reading import holds_events, read_recordings

__all__ = [
    "Binned",
    "Binning",
    "BinningReport",
    "Events",
    "Recordings",
    "bin_recordings",
    "holds_events",
    "read_recordings",
]
