"""Networks drawn at random, in every container that torch and Keras write: one table is wanted."""
