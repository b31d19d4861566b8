"""Tracking: MLflow behind one interface, or nothing."""
