"""Live modules to layers: each module looked at once, with the weight that acts."""
