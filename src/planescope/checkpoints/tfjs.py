NAME="x"
def recognises(probe): return False
