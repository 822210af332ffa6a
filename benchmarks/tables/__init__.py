"""Tables of records: what is in them, how they are written, what may be believed. No torch."""
