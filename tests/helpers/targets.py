"""Target modules made by hand, for results that come from no model."""

from __future__ import annotations

from tlora.models.targets import Target


def target(name: str, layer: int = 0, projection: str = "q_proj", shape: tuple[int, int] = (64, 48)) -> Target:
    """A module of attention, or of the MLP where its projection is not one of attention's."""
    part = "attention" if projection in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return Target(name, layer, projection, part, *shape)


def named(*targets: Target) -> dict[str, Target]:
    """The modules by name, as a result has them."""
    return {target.name: target for target in targets}
