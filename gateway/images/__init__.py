"""Images that requests name and do not carry: uploads, and what is fetched."""
