"""What is shown to be kept: pages, figures, tables, and the intervals in them."""
