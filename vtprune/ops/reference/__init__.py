"""The operations as plain loops over one picture, to be read beside the papers; tests hold the fast ones to them."""
