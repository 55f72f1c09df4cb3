"""Stage 4: the rank and the scale of each module under a fixed budget.

options (the arguments of `allocate`), constraints (floors, ceilings, fixed ranks), allocate (`allocate`), allocation
(its result), footprint (bytes of an adapter), stability (how much rankings and allocations depend on the samples).
"""
