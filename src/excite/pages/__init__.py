"""Output to keep: pages, figures, tables, and the confidence intervals in them."""
