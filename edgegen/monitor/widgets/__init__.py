"""Parts that screens are made of, each drawn line by line."""
