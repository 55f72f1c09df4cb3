"""Stage 4: the rank and the scale of each module under a fixed budget.

allocate (`allocate`), allocation (its result), constraints (floors, ceilings, fixed ranks), footprint (bytes of
an adapter), stability (how much rankings and allocations depend on the samples).
"""
