"""What calibration text decides: importance, repair and damage curves."""
