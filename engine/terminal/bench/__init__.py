"""`headrace bench` in a terminal: tables, results in files, pictures."""
