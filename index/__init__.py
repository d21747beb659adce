"""The vector store and the batch indexing job."""
