"""What `evaluate` leaves for the rooms after it: the journal and the damage curves. No torch."""
