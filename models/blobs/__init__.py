"""Adapters of the BlobStore port: a local folder and S3."""
