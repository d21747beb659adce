"""Housekeeping for people: what of a catalogue is probably wrong, found from its index and shown with pictures."""
