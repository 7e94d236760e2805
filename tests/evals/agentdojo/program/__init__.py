"""What runs in the jails, and what both sides share. Copied as the package `adojo` beside generated manifests (`packages`)."""
