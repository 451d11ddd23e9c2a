"""The files of the folder of a run, a module each."""
