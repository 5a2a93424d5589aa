"""Pages of the commands: each module writes one kind of page from the domain types it shows."""
