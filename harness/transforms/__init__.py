"""Changes of basis in which linears are quantised, one file each; nothing imports them by name."""
