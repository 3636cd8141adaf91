"""Tools around the product, never shipped in `mars.pyz`: hosts in name spaces, the demo, the build of the one file."""
