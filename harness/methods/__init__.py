"""Base methods, one file each; nothing imports them by name."""
