"""One night: the manifest, the steps in order, the audit, the publish."""
