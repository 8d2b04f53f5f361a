"""Any .nir file, whoever wrote it, as a training graph.

`reading` is the way in; the other modules each know one thing: what lies in the file (`hdf5`), nested graphs
(`nesting`), recurrence (`wiring`), and what one family of node kinds computes (`weights`, `maps`, `neurons`,
`integrators`, `delays`).
"""
