"""How a run reaches machines."""
