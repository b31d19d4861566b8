"""Which architectures to measure: the model's shape, the space of its widths, the designs."""
