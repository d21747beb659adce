"""Pictures by URL: which hosts and addresses may be asked, and how their answers are read."""
