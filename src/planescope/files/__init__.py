"""In and out of files, safely; knows nothing of networks."""
