"""The work of a study: its runs handed out, made one by one, and forecast."""
