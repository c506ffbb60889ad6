"""Tables: the name, the key, the row and the codec of each. Rows are JSON, readable with a console consumer."""
