"""Which tier has which expert: tiers, static policies as pure functions, the file format."""
