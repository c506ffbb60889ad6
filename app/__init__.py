"""Holdfast: keeps every session on its server while tenants move and servers fail."""
