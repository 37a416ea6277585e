"""What all of training stands on: files that are written whole, random numbers, what CPUs lack, the look of figures."""
