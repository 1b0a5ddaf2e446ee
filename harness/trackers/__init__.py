"""Trackers: mirrors of the record, one file each."""
