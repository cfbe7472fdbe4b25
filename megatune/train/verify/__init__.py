"""`megatune verify`: the same steps in one plain process and on the configured layout, compared.

Read `job` (which worlds are run), `world` (what a rank does), `compare` (when two traces are equal).
"""
