"""Ways into and out of other libraries."""
