"""What a run leaves: the record, its rows, checkpoints, and what runs share on disk."""
