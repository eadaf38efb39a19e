"""The endpoints, by the clients that use them."""
