"""Images that requests name and do not carry: uploads, and images that the gateway fetches."""
