"""Results made readable: a table on the terminal, and one self-contained HTML page."""
