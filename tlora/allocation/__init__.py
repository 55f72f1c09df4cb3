"""Stage 4: rank and scale of each module under a fixed budget.

allocation (`allocate` and its result), constraints (floors, ceilings, fixed ranks, shares), footprint (bytes of an
adapter), stability (how far an allocation depends on the samples).
"""
