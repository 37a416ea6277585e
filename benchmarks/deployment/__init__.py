"""Several processes: workers, replicas, Triton, Ray, and the simulation behind `awnet plan`."""
