"""Masked sums: secret sharing, masks, and the sum of what members send under them."""
