"""A layer of routed experts: of one token, of many, grouped on the device."""
