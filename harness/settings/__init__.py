"""What a run is: typed options and the run's identity."""
