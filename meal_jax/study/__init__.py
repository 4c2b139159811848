"""A study: a table of runs (variant × seed), trained in child processes, and the questions that they answer."""
