"""Studies: grids of runs, on one machine or on a Dask cluster."""
