"""The wire formats: requests of each API to what the engine is asked, and its events to what each API answers."""
