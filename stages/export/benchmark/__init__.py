"""The proof that the export is smaller and faster than the dense model."""
