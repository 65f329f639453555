"""The stages of the GPU day, their measures and records, and the packing of files for a machine without a network."""
