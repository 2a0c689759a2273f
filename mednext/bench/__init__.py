"""The benchmark harness: speed and memory of operators, blocks and networks beside other implementations of the same.

``mednext bench`` and ``python -m mednext.bench`` run it (the latter without typer and rich). A row's number is of a
result that was checked first; everything here knows only the public API of ``mednext_ops``.
"""
