"""Best architecture to things that people can load, and a report."""
