"""What models are like inside, and how two of them differ."""
