"""Encrypted disks: LUKS2 files, and the block device that a guest sees of one."""
