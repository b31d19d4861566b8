"""The report and the model card, made from files."""
