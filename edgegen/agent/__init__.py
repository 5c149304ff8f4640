"""The device: takes signed releases, proves them, switches to them, serves them, and goes back when they are worse.

`update` is the state machine; it sees the world only through small parts that a test can replace: `disk.Disk` (every
change of a file), `clock.Clock`, `fetch.Fetcher` (bytes of a blob), `update.TrustSource` (proven manifests),
`update.Tester` and `update.Serving` (the model). `main` puts the real ones together.
"""
