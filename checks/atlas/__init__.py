"""The atlas: published networks measured, by one command from a list of packages."""
