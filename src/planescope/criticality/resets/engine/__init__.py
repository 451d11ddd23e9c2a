"""The evaluation of the cells of a table, on one device or several."""
