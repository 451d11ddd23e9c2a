"""The claims of the paper, and ours, each answered by the runs of a study."""
