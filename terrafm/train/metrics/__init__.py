"""What a run writes of itself while it goes: lines, trackers, alerts, samples."""
