"""Releases: one small signed manifest that names content-addressed files.

build folder → `pack` → bundle folder → `repository` (static files that any web server holds) → `trust` on the device.
Signing needs the extra `sign` and happens in `keys` and `roles`; everything that a device needs (`manifest`, `accept`,
`trust`, `fetchers`, `layout`, `light`) runs on the base install: pure Python, ed25519 only, no `cryptography`.
"""
