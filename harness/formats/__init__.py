"""Number formats, one file each; nothing imports them by name."""
