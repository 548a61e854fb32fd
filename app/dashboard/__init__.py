"""The dashboard: pages over the store and the job folders. Nothing here runs a model."""
