"""Training: networks, data, noise, the loop. What needs torch imports it where it is used."""
