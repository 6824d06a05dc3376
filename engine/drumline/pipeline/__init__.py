"""The streaming pipeline: discover, extract, predict, write, and the supervisor that runs them."""
