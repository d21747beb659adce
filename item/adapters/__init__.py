"""What specialises one encoder for a category: adapters beside it, many in one batch."""
