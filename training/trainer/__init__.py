"""One training: recipe, inner maximisation, objective, step, run, validation."""
