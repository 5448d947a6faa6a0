"""Long simulations and campaigns, each a command of its own."""
