"""`mmesh top`: a live page of a mesh, from what its processes export (Prometheus metrics).

`targets` finds the processes, `scrape` reads them, `window` compares two looks at all of them,
`page` says what that means, `troubles` what is wrong, `alerts` what a Prometheus says of it,
`drawing` shows it. What may enter:
arithmetic on metrics by their documented names. What may not: calls of the mesh, which must not be
needed to look at it.
"""
