"""Will it fit, how fast will it be, what will it cost: `python -m launch.plan` (docs/plan.md)."""
