"""Table to accuracy predictor."""
