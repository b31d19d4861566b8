"""What `export` leaves for its report, as files and values: no torch, no model, no corpora."""
