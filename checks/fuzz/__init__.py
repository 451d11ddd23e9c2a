"""Throws mutated files at everything that planescope reads; ``make fuzz``.

    seeds.py        small files of every format, by the libraries whose formats they are
    structures.py   formats taken apart and put together again, changed
    mutations.py    what is done to a file, by a seed and the number of the case
    watching.py     sees what no file may cause: processes, sockets, other files, memory, time
    targets.py      what is read, by name
    campaign.py     many cases in worker processes, and what became of them

A case is told by its target, a seed and its number, and gives the same file again.
"""
