"""What benchmarks and tests share: programs started and ended, load, metrics read, results written."""
