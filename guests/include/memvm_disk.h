/* memvm's calls by which a guest uses the disks that it was given (memvm run --disk FILE). Elsewhere they fail with ENOSYS.
 *
 * A disk is a LUKS2 file. Given with its key, the guest reads and writes its contents. Given without, it reads and writes
 * ciphertext (MEMVM_DISK_RAW): AES-256-XTS, each sector tweaked by the number of its first unit of 512 bytes plus
 * `first_tweak`, as 64 bits in little-endian order, zero-extended. A guest that has the key decrypts inside, and nobody
 * outside needs to have it.
 *
 * Disks are numbered from 0. Sizes and offsets are in bytes, and multiples of the sector size. A call moves at most 1 MiB:
 * go on with the rest. No part of a disk is in a checkpoint, and disks are given again at a restore.
 */
#ifndef GUESTS_MEMVM_DISK_H
#define GUESTS_MEMVM_DISK_H

#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

enum {
    MEMVM_CALL_DISK_INFO = 0x6d760010,
    MEMVM_CALL_DISK_READ = 0x6d760011,
    MEMVM_CALL_DISK_WRITE = 0x6d760012,
    MEMVM_CALL_DISK_FLUSH = 0x6d760013,
};

enum {
    MEMVM_DISK_WRITABLE = 1,
    MEMVM_DISK_RAW = 2,       /* what is read and written is ciphertext */
    MEMVM_DISK_PROTECTED = 4, /* the platform notices sectors that were changed, exchanged or brought back */
};

struct memvm_disk_info {
    uint64_t size;
    uint32_t sector_size;
    uint32_t flags;
    uint64_t first_tweak;
    char uuid[40];                   /* ends with a NUL */
    unsigned char header_digest[48]; /* SHA-384 of all that is before the data */
};

/* Fills in *info. Returns 0, or -1 with errno: ENXIO if there is no such disk. */
static inline int memvm_disk_info(int disk, struct memvm_disk_info *info)
{
    return syscall(MEMVM_CALL_DISK_INFO, disk, info, sizeof *info) == sizeof *info ? 0 : -1;
}

/* Reads sectors. Returns how many bytes, fewer at the end of the disk and 0 behind it; -1 with errno: EINVAL for parts of
 * sectors, EIO for a sector that cannot be read, or is not what was last written there. */
static inline long memvm_disk_read(int disk, void *buffer, size_t size, uint64_t offset)
{
    return syscall(MEMVM_CALL_DISK_READ, disk, buffer, size, offset);
}

/* Writes sectors. Returns how many bytes; -1 with errno: EINVAL, ENOSPC behind the end, EROFS, EIO. */
static inline long memvm_disk_write(int disk, const void *buffer, size_t size, uint64_t offset)
{
    return syscall(MEMVM_CALL_DISK_WRITE, disk, buffer, size, offset);
}

/* Has all that was written outlive a crash; what was written since the last flush does so wholly or not at all, up to
 * 4 MiB of it. Returns 0, or -1 with errno: EIO. */
static inline int memvm_disk_flush(int disk)
{
    return (int)syscall(MEMVM_CALL_DISK_FLUSH, disk);
}

#endif
