"""The guest: ELF file, loader, address space, vCPU, hypercalls, and the loop that answers exits."""
