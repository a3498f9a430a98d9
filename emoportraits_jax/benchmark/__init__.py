"""`emoportraits benchmark`: each module times one topic and prints a table with ratios."""
