"""Which machine has which experts: dealt out at the start, copied, and dealt anew when a host is lost."""
