"""What `headrace plan` prints and draws."""
