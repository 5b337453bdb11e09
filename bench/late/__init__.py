"""Late interaction beside its peers, in process, over the same token vectors."""
