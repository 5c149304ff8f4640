"""One device over ssh, without a fleet server: set it up, and bring it a release.

The system's OpenSSH does the connecting, by subprocess: the user's configuration, keys, agent and jump hosts work as
they do everywhere.
"""
