"""A smaller network out of a trained one: what stays of each layer, and what makes up for it."""
