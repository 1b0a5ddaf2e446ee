"""How the range of a grid is found, one file each; nothing imports them by name."""
