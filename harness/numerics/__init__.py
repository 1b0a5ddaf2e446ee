"""The mathematics on weights and statistics; nothing here knows of models or runs."""
