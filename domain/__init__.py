"""What a detector's thresholds speak for: statistics of pixels that say where an image lies, and benign corruptions."""
