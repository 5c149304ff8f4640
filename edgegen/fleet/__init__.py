"""The server: which device is to take which release, and when.

Everything it knows is in one database; it can be killed at any moment and started again. It names releases and holds
no signing key that a device trusts for code: what may be installed is decided by the signed repository.
"""
