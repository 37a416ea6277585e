"""Every setting, as a variable, an option and a line of a file; where each comes from, and the names it had."""
