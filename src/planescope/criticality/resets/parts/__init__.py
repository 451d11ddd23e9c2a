"""A network in two parts, left before a layer and gone on with from there."""
