"""Pure protocol cores: states, events and what follows from them; no clock, no chance, no I/O."""
