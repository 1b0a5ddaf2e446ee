"""Kinds of checkpoints that a quantised model can be saved as, one file each."""
